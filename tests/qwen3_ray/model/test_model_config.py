from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError, ConfigError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.testing_models import TINY_MODEL, config_json

REQUIRED = [
    "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "max_position_embeddings", "tie_word_embeddings", "hidden_act",
]  # fmt: skip


def read(
    directory: Path, *, old_keys: bool = False, drop: str | None = None, **changes: object
) -> ModelConfig:
    values = config_json(TINY_MODEL, old_keys=old_keys) | changes
    if drop:
        del values[drop]
    (directory / "config.json").write_text(json.dumps(values))
    return ModelConfig.from_dir(directory)


@pytest.mark.parametrize("old_keys", [False, True], ids=["new", "old"])
def test_both_key_styles_are_read(old_keys: bool, tmp_path: Path) -> None:
    assert read(tmp_path, old_keys=old_keys) == TINY_MODEL


def test_the_demo_model_is_read() -> None:
    config = ModelConfig.from_dir(DEMO_MODEL_DIR)
    assert config.num_heads * config.head_dim != config.hidden_size
    assert config.tie_word_embeddings


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name: str, tmp_path: Path) -> None:
    """No class default stands in: transformers' are those of no model."""
    with pytest.raises(CheckpointError, match=rf"config\.json.* {name} is missing"):
        read(tmp_path, drop=name)


@pytest.mark.parametrize(
    ("old_keys", "drop", "named"),
    [
        (False, "dtype", "dtype"),
        (True, "torch_dtype", "dtype"),
        (False, "rope_parameters", "rope_theta"),
        (True, "rope_theta", "rope_theta"),
    ],
)
def test_a_missing_field_of_one_key_style_is_named(
    old_keys: bool, drop: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"{named}.* is missing"):
        read(tmp_path, old_keys=old_keys, drop=drop)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "only Qwen3ForCausalLM and Qwen3MoeForCausalLM"),
        ({"architectures": []}, "only Qwen3ForCausalLM"),
        ({"architectures": "Qwen3ForCausalLM"}, "only Qwen3ForCausalLM"),
        ({"attention_bias": True}, "biased"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "full_attention"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "llama3.*and yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear.*plain RoPE"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"num_hidden_layers": 0}, "positive integer"),
        ({"num_hidden_layers": True}, "positive integer"),
        ({"hidden_size": "96"}, "positive integer"),
        ({"rms_norm_eps": -1.0}, "positive number"),
        ({"rms_norm_eps": float("inf")}, "positive number"),
        ({"rms_norm_eps": 10**400}, "positive number"),
        ({"tie_word_embeddings": 1}, "true or false"),
        ({"dtype": "float8_e4m3fn"}, "must be one of"),
        ({"num_attention_heads": 7}, "multiple of num_key_value_heads"),
        ({"head_dim": 33}, "even"),
        ({"eos_token_id": ["x"]}, "list of ids"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(tmp_path, **changes)
    assert next(iter(changes)).split("_")[0] in str(caught.value)


def test_old_style_plain_scaling_is_accepted(tmp_path: Path) -> None:
    scaling = {"rope_type": "default"}
    assert read(tmp_path, old_keys=True, rope_scaling=scaling) == TINY_MODEL


@pytest.mark.parametrize(
    ("config_eos", "generation_eos", "expected"),
    [
        (5, None, {5}),
        ([5, 6], None, {5, 6}),
        (5, 7, {7}),
        (5, [7, 8], {7, 8}),
        (None, None, set()),
    ],
)
def test_generation_config_decides_what_ends_an_output(
    config_eos: object, generation_eos: object, expected: set[int], tmp_path: Path
) -> None:
    if generation_eos is not None:
        (tmp_path / "generation_config.json").write_text(
            json.dumps({"eos_token_id": generation_eos})
        )
    assert read(tmp_path, eos_token_id=config_eos).eos_token_ids == expected


def test_a_generation_config_without_eos_leaves_the_config_s(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert read(tmp_path, eos_token_id=3).eos_token_ids == {3}


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\xff"])
def test_damaged_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_dir(tmp_path)


def test_a_missing_file_is_named_also_across_processes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        ModelConfig.from_dir(tmp_path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_that_can_share_the_heads_are_accepted(size: int) -> None:
    """8 query heads, 2 key/value heads: from 4 ranks on those are replicated."""
    TINY_MODEL.check_tensor_parallel(size)
    assert TINY_MODEL.num_local_kv_heads(size) == max(1, 2 // size)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TINY_MODEL, 3),
        (TINY_MODEL, 16),
        (replace(TINY_MODEL, intermediate_size=130), 4),
        (replace(TINY_MODEL, num_heads=12, num_kv_heads=6, intermediate_size=120), 4),
    ],
    ids=["3 of 8 heads", "16 of 8 heads", "intermediate size", "4 ranks, 6 kv heads"],
)
def test_others_are_refused_with_all_three_numbers(config: ModelConfig, size: int) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size") as caught:
        config.check_tensor_parallel(size)
    for number in (config.num_heads, config.num_kv_heads, config.intermediate_size):
        assert str(number) in str(caught.value)


def test_the_context_is_the_models_unless_the_settings_ask_for_less() -> None:
    config = ModelConfig.from_dir(DEMO_MODEL_DIR)
    assert config.resolve_max_model_len(None) == 32_768
    assert config.resolve_max_model_len(100) == 100
    with pytest.raises(ConfigError, match=r"max_model_len = 32769: .* 32768 tokens"):
        config.resolve_max_model_len(32_769)
