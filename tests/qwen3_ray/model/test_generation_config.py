"""What generation_config.json decides: sampling defaults, and where outputs end."""

import json
from pathlib import Path

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError
from qwen3_ray.model.generation_config import default_sampling
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.sampling_params import SamplingParams

QWEN3 = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}


def write(model_dir: Path, values: object) -> Path:
    file = model_dir / "generation_config.json"
    file.write_text(json.dumps(values))
    return file


def test_fields_that_the_file_has_are_the_defaults(tmp_path: Path) -> None:
    write(tmp_path, {**QWEN3, "bos_token_id": 1, "transformers_version": "4.51.0"})
    assert default_sampling(tmp_path) == QWEN3
    params = SamplingParams(**default_sampling(tmp_path))
    assert params == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)


def test_every_sampling_field_is_read(tmp_path: Path) -> None:
    values = {**QWEN3, "min_p": 0.1, "repetition_penalty": 1.05, "temperature": 1}
    write(tmp_path, values)
    assert default_sampling(tmp_path) == values


def test_the_demo_model_s_defaults() -> None:
    assert default_sampling(DEMO_MODEL_DIR) == {"temperature": 0.8, "top_p": 0.95}


def test_without_a_file_or_fields_there_are_none(tmp_path: Path) -> None:
    assert default_sampling(tmp_path) == {}
    write(tmp_path, {"temperature": None})
    assert default_sampling(tmp_path) == {}


def test_neither_do_sample_nor_max_new_tokens_is_a_default(tmp_path: Path) -> None:
    write(tmp_path, {"do_sample": False, "max_new_tokens": 2048, "temperature": 0.5})
    assert default_sampling(tmp_path) == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-1, 3, "0.6", True, [], float("nan"), 10**400)],
        *[("top_p", value) for value in (0, 1.5, "1")],
        *[("top_k", value) for value in (-2, 20.0, "20", False)],
        *[("min_p", value) for value in (-0.1, 2)],
        *[("repetition_penalty", value) for value in (0, -1, float("inf"))],
    ],
    ids=lambda value: f"{value!r:.10}",
)
def test_a_value_that_cannot_be_is_refused_and_named(
    tmp_path: Path, name: str, value: object
) -> None:
    file = write(tmp_path, {**QWEN3, name: value})
    with pytest.raises(CheckpointError, match=f"field {name} must be") as info:
        default_sampling(tmp_path)
    assert info.value.file == str(file)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    for values in ([], "x", 1):
        write(tmp_path, values)
        with pytest.raises(CheckpointError, match="must hold a JSON object"):
            default_sampling(tmp_path)


def eos_of(model_dir: Path, config: object, generation: object, tokenizer: str) -> frozenset[int]:
    values = json.loads((DEMO_MODEL_DIR / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**values, "eos_token_id": config}))
    write(model_dir, {} if generation is None else {"eos_token_id": generation})
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokenizer}))
    return ModelConfig.from_dir(model_dir).eos_token_ids


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (7, None, {7}),
        ([7, 8], None, {7, 8}),
        (7, 9, {9}),
        (7, [9, 7], {7, 9}),
        ([7, 8], [9], {9}),
        (None, 9, {9}),
        (None, None, set()),
        (0, [0], {0}),
    ],
)
def test_outputs_end_where_the_generation_config_says_else_the_config_never_the_tokenizer(
    tmp_path: Path, config: object, generation: object, expected: set[int]
) -> None:
    """Qwen3's base models end at `<|endoftext|>`, while their tokenizer says `<|im_end|>`."""
    assert eos_of(tmp_path, config, generation, "<|im_end|>") == expected


@pytest.mark.parametrize("bad", ["7", -1, 1.0, True, [7, "8"], {}])
def test_ends_that_are_no_ids_are_refused(tmp_path: Path, bad: object) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config.json.*field eos_token_id"):
        eos_of(tmp_path, 7, bad, "<|im_end|>")
    with pytest.raises(CheckpointError, match="field eos_token_id"):
        eos_of(tmp_path, bad, None, "<|im_end|>")
