"""YaRN is read as transformers reads it, and rotates as it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import CheckpointError, ConfigError
from qwen3_ray.layers.rotary import build_cos_sin
from qwen3_ray.layers.yarn import YarnScaling
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import TINY_YARN, config_json, engine_config
from tests.qwen3_ray.model.helpers import FP32_BOUND, VISIBLE, Checkpoint, OracleLogits, random_ids
from tests.qwen3_ray.model.helpers import relative_error as error

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CPU = torch.device("cpu")

SCALINGS = st.fixed_dictionaries(
    {
        "rope_type": st.just("yarn"),
        "rope_theta": st.sampled_from([1e4, 1e6, 5e6]),
        "factor": st.sampled_from([1.0, 1.5, 2, 4.0, 8.0]),
        "original_max_position_embeddings": st.sampled_from([4, 32, 4_096, 32_768]),
    },
    optional={
        "beta_fast": st.sampled_from([16, 32.0, 64]),
        "beta_slow": st.sampled_from([1, 2.0, 16]),
        "truncate": st.booleans(),
        "attention_factor": st.sampled_from([1.0, 1.5]),
        "mscale": st.sampled_from([0.7, 1.0]),
        "mscale_all_dim": st.sampled_from([0.5, 1]),
    },
)


def read(directory: Path, **changes: object) -> ModelConfig:
    values = config_json(TINY_YARN) | changes
    (directory / "config.json").write_text(json.dumps(values))
    return ModelConfig.from_dir(directory)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rope=SCALINGS, head_dim=st.sampled_from([8, 32, 128]))
def test_the_rotation_is_that_of_transformers(
    rope: dict[str, Any], head_dim: int, tmp_path: Path
) -> None:
    """Bit for bit, at positions within the original context and beyond it."""
    from transformers import Qwen3Config  # noqa: PLC0415 - seconds to import
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding  # noqa: PLC0415

    config = read(tmp_path, head_dim=head_dim, rope_parameters=rope)
    table = build_cos_sin(
        head_dim=head_dim, theta=config.rope_theta, num_positions=300, device=CPU, yarn=config.yarn
    )
    oracle = Qwen3RotaryEmbedding(
        Qwen3Config(
            head_dim=head_dim,
            rope_parameters=rope,
            max_position_embeddings=rope["original_max_position_embeddings"],
        )
    )
    cos, sin = oracle(torch.zeros(1), torch.arange(300)[None])
    assert torch.equal(
        table, torch.cat((cos[0, :, : head_dim // 2], sin[0, :, head_dim // 2 :]), 1)
    )


@pytest.mark.parametrize("old_keys", [False, True], ids=["new", "old"])
def test_both_key_styles_are_read(old_keys: bool, tmp_path: Path) -> None:
    values = config_json(TINY_YARN, old_keys=old_keys)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert ModelConfig.from_dir(tmp_path) == TINY_YARN


def test_scaling_added_by_hand_to_a_new_file_is_read(tmp_path: Path) -> None:
    """As the model cards say it: an object named rope_scaling, here with the older `type`."""
    plain = {"rope_type": "default", "rope_theta": 1e4}
    scaling = {"type": "yarn"} | {k: v for k, v in YARN.items() if k != "rope_type"}
    assert read(tmp_path, rope_parameters=plain, rope_scaling=scaling) == TINY_YARN


@pytest.mark.parametrize(
    ("changes", "named", "reason"),
    [
        ({"factor": None}, "factor", "is missing"),
        ({"original_max_position_embeddings": None}, "original_max_position", "is missing"),
        ({"factor": 0.5}, "factor", "at least 1"),
        ({"factor": "4"}, "factor", "positive number"),
        ({"original_max_position_embeddings": 0}, "original_max_position", "positive integer"),
        ({"beta_fast": 1, "beta_slow": 2}, "beta_fast", "beta_slow = 2"),
        ({"beta_slow": -1}, "beta_slow", "positive number"),
        ({"attention_factor": 0}, "attention_factor", "positive number"),
        ({"truncate": 1}, "truncate", "true or false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "whole heads"),
        ({"rope_theta": 1.0}, "rope_theta", "above 1"),
    ],
)
def test_what_cannot_be_computed_is_named(
    changes: dict[str, object], named: str, reason: str, tmp_path: Path
) -> None:
    rope = YARN | {"rope_theta": 1e4} | changes
    with pytest.raises(CheckpointError, match=rf"{named}.*{reason}"):
        read(tmp_path, rope_parameters=rope)


def test_two_scalings_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope_scaling and rope_parameters say different"):
        read(tmp_path, rope_scaling=YARN | {"factor": 2.0})


@pytest.mark.parametrize(
    ("max_position_embeddings", "expected"), [(32, 128), (40, 128), (128, 128), (200, 200)]
)
def test_the_context_is_the_longer_of_what_two_fields_say(
    max_position_embeddings: int, expected: int
) -> None:
    config = replace(TINY_YARN, max_position_embeddings=max_position_embeddings)
    assert config.resolve_max_model_len(None) == expected
    assert config.resolve_max_model_len(expected) == expected
    with pytest.raises(ConfigError, match=f"context of {expected} tokens"):
        config.resolve_max_model_len(expected + 1)


def changed(**changes: object) -> YarnScaling:
    assert TINY_YARN.yarn is not None
    return replace(TINY_YARN.yarn, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mutant",
    [
        None,
        changed(attention_factor=1.0),
        changed(factor=3.9),
        changed(original_max_position_embeddings=64),
        changed(truncate=False),
        changed(beta_slow=2.0),
    ],
    ids=["plain RoPE", "no attention factor", "factor", "length", "not truncated", "beta_slow"],
)
def test_the_oracle_notices_another_rotation(
    mutant: YarnScaling | None, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint("YaRN", "float32")
    ids = random_ids(model_dir, 100)

    def logits(config: ModelConfig) -> torch.Tensor:
        settings = engine_config(model_dir, dtype="float32", max_model_len=100)
        return forward_logits(load_model(settings, config, TPGroup.single()), ids)

    config = replace(TINY_YARN, dtype="float32")
    expected = oracle_logits(model_dir, ids)
    assert error(logits(config), expected) <= FP32_BOUND
    mutated = replace(config, yarn=mutant, max_position_embeddings=128)
    assert error(logits(mutated), expected) > VISIBLE
