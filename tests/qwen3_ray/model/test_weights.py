"""What is read of a checkpoint, and that nothing damaged is."""

from __future__ import annotations

import json
import logging
import mmap
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import CheckpointError, ConfigError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.safetensors_header import MAX_HEADER_BYTES, read_header
from qwen3_ray.model.shard import Span
from qwen3_ray.model.weight_reader import WeightReader
from qwen3_ray.model.weights import KernelChoice, load_model, weights_manifest
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import TINY_MODEL, engine_config, make_checkpoint, run_ranks
from tests.qwen3_ray.model.helpers import load

TIED = replace(TINY_MODEL, tie_word_embeddings=True)
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
IDS = list(range(20))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def weights_file(model_dir: Path) -> Path:
    return model_dir / "model.safetensors"


def edit_tensors(model_dir: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(weights_file(model_dir))
    edit(tensors)
    save_file(tensors, weights_file(model_dir))


def edit_header(file: Path, edit: Callable[[dict[str, dict[str, object]]], object]) -> None:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def test_single_file_shards_and_old_keys_are_one_model(model_dir: Path, tmp_path: Path) -> None:
    expected = forward_logits(load(model_dir), IDS)
    other = make_checkpoint(tmp_path / "other", num_shards=3, old_keys=True)
    assert not weights_file(other).exists()
    assert torch.equal(forward_logits(load(other), IDS), expected)


@pytest.mark.parametrize("config", [TINY_MODEL, TIED], ids=["untied", "tied"])
def test_each_rank_reads_its_own_bytes_once(config: ModelConfig, tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", config)
    total = sum(tensor.nbytes for tensor in load_file(weights_file(model_dir)).values())
    assert load(model_dir).num_bytes_read == total
    read = [model.num_bytes_read for model in run_ranks(2, lambda tp: load(model_dir, tp))]
    vectors = 2 * (2 * config.num_layers * (config.hidden_size + config.head_dim) + 96)
    assert sum(read) == total + vectors
    assert abs(read[0] - read[1]) <= 2 * 2 * config.hidden_size  # 259 ids do not divide by 2


@pytest.mark.parametrize("size", [1, 2, 8])
def test_progress_ends_at_the_total_that_it_began_with(size: int, model_dir: Path) -> None:
    def run(tp: TPGroup) -> None:
        seen: list[tuple[int, int]] = []
        model = load_model(
            engine_config(model_dir),
            TINY_MODEL,
            tp,
            lambda done, total: seen.append((done, total)),
        )
        assert seen == sorted(seen)
        assert {total for _, total in seen} == {model.num_bytes_read}
        assert seen[-1][0] == model.num_bytes_read

    run_ranks(size, run)


def test_slices_are_those_of_the_whole(model_dir: Path) -> None:
    whole = load_file(weights_file(model_dir))[K_PROJ]
    reader = WeightReader(model_dir, TINY_MODEL)
    slices = [
        (reader.whole(K_PROJ), whole),
        (reader.rows(K_PROJ, Span(3, 30)), whole[3:30]),
        (reader.columns(K_PROJ, Span(5, 40)), whole[:, 5:40]),
        (reader.rows(K_PROJ, Span(7, 7)), whole[7:7]),
    ]
    for part, expected in slices:
        assert torch.equal(part.tensor, expected)
        part.release()
        assert torch.equal(part.tensor, expected)
    assert reader.num_bytes_read == sum(expected.nbytes for _, expected in slices)


def test_slices_outlive_their_reader_and_their_file(model_dir: Path) -> None:
    whole = load_file(weights_file(model_dir))[K_PROJ]
    part = WeightReader(model_dir, TINY_MODEL).rows(K_PROJ, Span(0, 64))
    part.release()
    make_checkpoint(model_dir.parent / "other", seed=1).joinpath("model.safetensors").replace(
        weights_file(model_dir)
    )
    assert torch.equal(part.tensor, whole)


def test_what_is_written_to_a_slice_stays_in_this_process(model_dir: Path) -> None:
    before = weights_file(model_dir).read_bytes()
    WeightReader(model_dir, TINY_MODEL).whole(K_PROJ).tensor.zero_()
    assert weights_file(model_dir).read_bytes() == before


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_may_align_nothing(tied: bool, tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", TIED if tied else TINY_MODEL)
    expected = forward_logits(load(model_dir), IDS)
    file = weights_file(model_dir)
    data = file.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:header_end] + b" " * (1 - header_end % 2)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[header_end:])
    assert min(tensor.offset for tensor in read_header(file).values()) % 2 == 1
    assert torch.equal(forward_logits(load(model_dir), IDS), expected)


def mapped_bytes(file: Path) -> int:
    """Bytes of `file` that lie in this process's mappings, and are in memory."""
    text = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(file))}\n(?:\w+:.*\n)*?Rss: +(\d+) kB", text)
    return 1024 * sum(map(int, found))


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_embedding_stays_in_its_file(tied: bool, tmp_path: Path) -> None:
    """Of a checkpoint in shards, whose pages are given back once a tensor is packed."""
    config = replace(TINY_MODEL, vocab_size=8_000, tie_word_embeddings=tied)
    model_dir = make_checkpoint(tmp_path / "model", config, num_shards=30)
    model = load(model_dir)
    table = model._embedding.table
    assert table.dtype == torch.bfloat16
    maps = Path("/proc/self/maps").read_text()
    mapped = {file for file in model_dir.glob("*.safetensors") if str(file) in maps}
    assert len(mapped) == 1
    assert mapped_bytes(mapped.pop()) <= 2 * mmap.PAGESIZE
    rows = model._embedding.forward(torch.tensor([0, 7_999], dtype=torch.int32))
    assert torch.equal(rows, table[[0, 7_999]].float())


def test_more_ranks_than_ids_share_a_vocabulary(tmp_path: Path) -> None:
    """9 ids over 8 ranks: 2 for each of four, 1 for the next, none for three."""
    model_dir = make_checkpoint(
        tmp_path / "model", replace(TINY_MODEL, vocab_size=9, num_kv_heads=8)
    )
    ids = list(range(9))
    expected = forward_logits(load(model_dir), ids)
    logits = run_ranks(8, lambda tp: forward_logits(load(model_dir, tp), ids))[0]
    assert expected is not None
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def set_tensor(value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({K_PROJ: value})


def poison(tensors: dict[str, torch.Tensor], value: float) -> None:
    tensors[K_PROJ][3, 5] = value


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda tensors: tensors.pop(K_PROJ), "lacks it"),
        (set_tensor(torch.zeros(63, 96).bfloat16()), r"shape \[63, 96\].*implies \[64, 96\]"),
        (set_tensor(torch.zeros(64, 96).half()), "dtype F16.*bfloat16"),
        (lambda tensors: poison(tensors, float("nan")), "NaN or infinite"),
        (lambda tensors: poison(tensors, float("inf")), "NaN or infinite"),
    ],
    ids=["missing", "shape", "dtype", "nan", "inf"],
)
def test_a_bad_tensor_is_named(
    edit: Callable[[dict[str, torch.Tensor]], object], problem: str, model_dir: Path
) -> None:
    edit_tensors(model_dir, edit)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load(model_dir)
    assert caught.value.tensor == K_PROJ
    assert caught.value.file.endswith("safetensors")


@pytest.mark.parametrize("kernels", ["numba", "reference"])
@pytest.mark.parametrize("config", [TINY_MODEL, TIED], ids=["untied", "tied"])
def test_what_is_not_finite_is_named_in_any_tensor(
    config: ModelConfig, kernels: KernelChoice, tmp_path: Path
) -> None:
    """In its last element: of matrices that are joined, of vectors, of what stays in the file."""
    model_dir = make_checkpoint(tmp_path / "model", config)
    good = load_file(weights_file(model_dir))
    for name, tensor in good.items():
        bad = tensor.clone()
        bad.view(-1)[-1] = float("nan")
        save_file(good | {name: bad}, weights_file(model_dir))
        with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
            load(model_dir, kernels=kernels)
        assert caught.value.tensor == name


def test_a_tensor_of_another_architecture_is_refused(model_dir: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(model_dir, lambda tensors: tensors.update({name: torch.zeros(4)}))
    with pytest.raises(CheckpointError, match="no Qwen3 model") as caught:
        load(model_dir)
    assert caught.value.tensor == name


def test_the_head_of_a_tied_model_may_be_there(tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", TIED)
    expected = forward_logits(load(model_dir), IDS)
    head = torch.ones(259, 96).bfloat16()
    edit_tensors(model_dir, lambda tensors: tensors.update({"lm_head.weight": head}))
    assert torch.equal(forward_logits(load(model_dir), IDS), expected)


@pytest.mark.parametrize("keep", [0, 4, 100, 5_000, -1])
def test_a_truncated_file_is_named(keep: int, model_dir: Path) -> None:
    file = weights_file(model_dir)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(model_dir)


def test_bytes_after_the_last_tensor_are_refused(model_dir: Path) -> None:
    with weights_file(model_dir).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="its tensors end at"):
        load(model_dir)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        stream.truncate(2 * MAX_HEADER_BYTES)  # sparse
    with pytest.raises(CheckpointError, match="its header says"):
        read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16"},
        {"dtype": "XX", "shape": [64, 96], "data_offsets": [0, 12_288]},
        {"dtype": "BF16", "shape": [64, 96], "data_offsets": [0, 100]},
        {"dtype": "BF16", "shape": [64, 96], "data_offsets": [0]},
        {"dtype": "BF16", "shape": [-64, -96], "data_offsets": [0, 12_288]},
        {"dtype": "BF16", "shape": [64, 96], "data_offsets": [-12_288, 0]},
        {"dtype": "BF16", "shape": ["64", 96], "data_offsets": [0, 12_288]},
        {"dtype": "BF16", "shape": [64, 96], "data_offsets": [2, 12_290]},
        {"dtype": ["BF16"], "shape": [64, 96], "data_offsets": [0, 12_288]},
        "BF16",
        None,
    ],
)
def test_a_damaged_header_entry_is_named(entry: object, model_dir: Path) -> None:
    edit_header(weights_file(model_dir), lambda header: header.update({K_PROJ: entry}))
    with pytest.raises(CheckpointError) as caught:
        load(model_dir)
    assert caught.value.file == "model.safetensors"
    assert caught.value.tensor


@pytest.mark.parametrize("text", [b"\xff\xff", b"[]", b"{}{}", b"null", b"[" * 50_000])
def test_a_header_that_is_no_object_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="header"):
        read_header(file)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", num_shards=3)
    (model_dir / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.*does not exist"):
        load(model_dir)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("model-00001-of-00002.safetensors", "places it here"),
        ("../secret", "beside it"),
        ("/etc/passwd", "beside it"),
        (7, "beside it"),
    ],
)
def test_an_index_that_misleads_is_refused(target: object, problem: str, tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", num_shards=2)
    file = model_dir / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = next(
        name for name, shard in index["weight_map"].items() if shard.startswith("model-00002")
    )
    index["weight_map"][name] = target
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=problem) as caught:
        load(model_dir)
    assert caught.value.tensor == name


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_a_damaged_index_is_named(text: str, tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", num_shards=2)
    (model_dir / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(model_dir)


def test_a_directory_without_weights_says_what_it_looked_for(model_dir: Path) -> None:
    weights_file(model_dir).unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load(model_dir)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("dtype", "bfloat16"), ("dtype", "float16"), ("kv_cache_dtype", "bfloat16")],
)
def test_what_a_cpu_does_not_serve_is_refused(setting: str, value: str, model_dir: Path) -> None:
    config = engine_config(model_dir, **{setting: value})
    with pytest.raises(ConfigError, match="on CPU only") as caught:
        load_model(config, TINY_MODEL, TPGroup.single())
    assert caught.value.field == setting


def test_weights_that_fp16_does_not_hold_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(TINY_MODEL, dtype="float32")
    model_dir = make_checkpoint(tmp_path / "model", config)
    with caplog.at_level(logging.WARNING):
        model = load(model_dir)
    assert model.kernel_names == "fp32-panels+numba"
    assert len(caplog.records) == 1
    assert "9 of 9" in caplog.text


def test_the_manifest_tells_weights_and_configs_apart(model_dir: Path, tmp_path: Path) -> None:
    manifest = weights_manifest(model_dir)
    assert weights_manifest(make_checkpoint(tmp_path / "same")) == manifest
    others = [
        make_checkpoint(tmp_path / "seed", seed=1),
        make_checkpoint(tmp_path / "shape", TIED),
        make_checkpoint(tmp_path / "theta", replace(TINY_MODEL, rope_theta=5e6)),
    ]
    assert len({manifest, *map(weights_manifest, others)}) == 4
