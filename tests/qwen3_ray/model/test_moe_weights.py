"""What each rank reads of a mixture of experts, and that nothing damaged is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import CheckpointError
from qwen3_ray.layers.linear import DenseMatrix
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3_moe import SparseMLP
from qwen3_ray.model.weights import load_model, weights_manifest
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import TINY_MOE, engine_config, make_checkpoint, run_ranks
from tests.qwen3_ray.model.conftest import EXPERTS, SHAPES
from tests.qwen3_ray.model.helpers import load

EXPERT = "model.layers.2.mlp.experts.5.down_proj.weight"
GATE = "model.layers.0.mlp.gate.weight"
IDS = list(range(20))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", TINY_MOE)


def expected_bytes(model_dir: Path, config: ModelConfig, rank: int, size: int) -> int:
    """What `rank` must read, tensor by tensor: its share, or all of what every rank needs."""
    first_id = -(-config.vocab_size // size) * rank
    num_ids = min(-(-config.vocab_size // size), config.vocab_size - first_id)
    total = 0
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        if name.startswith(("lm_head", "model.embed_tokens")):
            total += num_ids * tensor[0].nbytes
        elif tensor.dim() == 1 or name.endswith("mlp.gate.weight"):
            total += tensor.nbytes
        elif "k_proj" in name or "v_proj" in name:
            total += tensor.nbytes // min(size, config.num_kv_heads)
        elif ".experts." in name:
            expert = int(name.split(".experts.")[1].split(".")[0])
            owner = expert * size // config.moe.num_experts
            total += tensor.nbytes if owner == rank else 0
        else:
            total += tensor.nbytes // size
    return total


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("shape", EXPERTS)
def test_each_rank_reads_its_own_bytes_once(shape: str, size: int, tmp_path: Path) -> None:
    """Its share of heads, columns and ids, and whole experts; gates and norms are on every rank."""
    config = SHAPES[shape]
    model_dir = make_checkpoint(tmp_path / "model", config)
    read = [model.num_bytes_read for model in run_ranks(size, lambda tp: load(model_dir, tp))]
    assert read == [expected_bytes(model_dir, config, rank, size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_progress_ends_at_the_total_that_it_began_with(size: int, model_dir: Path) -> None:
    def run(tp: TPGroup) -> None:
        seen: list[tuple[int, int]] = []
        model = load_model(
            engine_config(model_dir), TINY_MOE, tp, lambda done, total: seen.append((done, total))
        )
        assert {total for _, total in seen} == {model.num_bytes_read}
        assert seen[-1][0] == model.num_bytes_read

    run_ranks(size, run)


def test_ranks_hold_contiguous_shares_of_whole_experts(model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")

    def experts_of(tp: TPGroup) -> list[torch.Tensor]:
        model = load(model_dir, tp, dtype="float32", kernels="reference")
        mlp = model._layers[2].mlp
        assert isinstance(mlp, SparseMLP)
        assert mlp.routing.first_expert == 2 * tp.rank
        matrices = [expert.down_proj for expert in mlp.experts]
        assert all(isinstance(matrix, DenseMatrix) for matrix in matrices)
        return [matrix._weight for matrix in matrices]

    shares = run_ranks(4, experts_of)
    assert [len(share) for share in shares] == [2, 2, 2, 2]
    for index, weight in enumerate(weight for share in shares for weight in share):
        stored = tensors[f"model.layers.2.mlp.experts.{index}.down_proj.weight"]
        assert torch.equal(weight, stored.float())


def test_single_file_shards_and_old_keys_are_one_model(model_dir: Path, tmp_path: Path) -> None:
    expected = forward_logits(load(model_dir), IDS)
    other = make_checkpoint(tmp_path / "other", TINY_MOE, num_shards=3, old_keys=True)
    assert torch.equal(forward_logits(load(other), IDS), expected)


def edit(model_dir: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, model_dir / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (EXPERT, torch.zeros(96, 47).bfloat16(), r"shape \[96, 47\].*implies \[96, 48\]"),
        (EXPERT, torch.zeros(96, 48), "dtype F32.*bfloat16"),
        (EXPERT, torch.full((96, 48), float("nan")).bfloat16(), "NaN or infinite"),
        (GATE, torch.zeros(9, 96).bfloat16(), r"shape \[9, 96\].*implies \[8, 96\]"),
        ("model.layers.0.mlp.experts.8.up_proj.weight", torch.zeros(1), "no Qwen3 model of this"),
        ("model.layers.1.mlp.gate.weight", torch.zeros(1), "no Qwen3 model of this"),
        ("model.layers.0.mlp.shared_expert_gate.weight", torch.zeros(1), "no Qwen3 model of this"),
    ],
)
def test_a_bad_tensor_is_named(
    name: str, value: torch.Tensor, problem: str, model_dir: Path
) -> None:
    edit(model_dir, lambda tensors: tensors.update({name: value}))
    with pytest.raises(CheckpointError, match=problem) as caught:
        load(model_dir)
    assert caught.value.tensor == name


@pytest.mark.parametrize("name", [EXPERT, GATE])
def test_a_missing_tensor_is_named(name: str, model_dir: Path) -> None:
    edit(model_dir, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match="lacks it") as caught:
        load(model_dir)
    assert caught.value.tensor == name


def test_the_manifest_covers_every_expert(model_dir: Path) -> None:
    before = weights_manifest(model_dir)
    edit(model_dir, lambda tensors: tensors[EXPERT].neg_())
    assert weights_manifest(model_dir) != before
