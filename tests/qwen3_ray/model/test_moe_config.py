"""What is read of a mixture of experts' config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3_ray.errors import CheckpointError, ConfigError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.moe_config import MoEConfig
from qwen3_ray.testing_models import TINY_MOE, config_json

OWN_FIELDS = [
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
]


def read(
    directory: Path, *, old_keys: bool = True, drop: str | None = None, **changes: object
) -> ModelConfig:
    values = config_json(TINY_MOE, old_keys=old_keys) | changes
    if drop:
        del values[drop]
    (directory / "config.json").write_text(json.dumps(values))
    return ModelConfig.from_dir(directory)


def experts(**changes: object) -> MoEConfig:
    assert TINY_MOE.moe is not None
    return replace(TINY_MOE.moe, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("old_keys", [False, True], ids=["num_local_experts", "num_experts"])
def test_both_key_styles_are_read(old_keys: bool, tmp_path: Path) -> None:
    assert read(tmp_path, old_keys=old_keys) == TINY_MOE


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig  # noqa: PLC0415 - seconds to import

    read(tmp_path)
    Qwen3MoeConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "num_experts" not in values
    assert ModelConfig.from_dir(tmp_path / "again") == TINY_MOE


@pytest.mark.parametrize("name", ["num_experts", "head_dim", "intermediate_size", *OWN_FIELDS])
def test_a_missing_field_is_named(name: str, tmp_path: Path) -> None:
    """transformers would take 128 experts, unnormalised, with heads of hidden_size / num_heads."""
    with pytest.raises(CheckpointError, match=rf"config\.json.* {name} .*is missing"):
        read(tmp_path, drop=name)


def test_a_dense_model_needs_none_of_them(tmp_path: Path) -> None:
    dense = read(tmp_path, architectures=["Qwen3ForCausalLM"], norm_topk_prob=None)
    assert dense == replace(TINY_MOE, moe=None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_experts": 0}, "positive integer"),
        ({"num_local_experts": 4}, "different things"),
        ({"num_experts_per_tok": 9}, "= 9 exceeds num_experts = 8"),
        ({"moe_intermediate_size": "48"}, "positive integer"),
        ({"norm_topk_prob": 1}, "true or false"),
        ({"decoder_sparse_step": 0}, "positive integer"),
        ({"mlp_only_layers": 1}, "list of layers"),
        ({"mlp_only_layers": [-1]}, "list of layers"),
        ({"mlp_only_layers": [True]}, "list of layers"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(tmp_path, **changes)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("mlp_only", [[], [1], [2, 5, 99]])
def test_the_same_layers_are_sparse_as_in_transformers(step: int, mlp_only: list[int]) -> None:
    from transformers import Qwen3MoeConfig  # noqa: PLC0415 - seconds to import
    from transformers.models.qwen3_moe import modeling_qwen3_moe as oracle  # noqa: PLC0415

    moe = experts(decoder_sparse_step=step, mlp_only_layers=frozenset(mlp_only))
    config = replace(TINY_MOE, num_layers=7, moe=moe)
    other = Qwen3MoeConfig(
        hidden_size=8, num_attention_heads=1, num_key_value_heads=1, intermediate_size=8,
        moe_intermediate_size=8, num_experts=2,
        decoder_sparse_step=step, mlp_only_layers=mlp_only,
    )  # fmt: skip
    expected = [
        isinstance(oracle.Qwen3MoeDecoderLayer(other, index).mlp, oracle.Qwen3MoeSparseMoeBlock)
        for index in range(7)
    ]
    assert [config.moe_at(index) is not None for index in range(7)] == expected
    assert config.num_dense_layers == expected.count(False)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_that_can_share_the_experts_are_accepted(size: int) -> None:
    TINY_MOE.check_tensor_parallel(size)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (replace(TINY_MOE, moe=experts(num_experts=6)), 4),
        (replace(TINY_MOE, intermediate_size=130), 4),
        (replace(TINY_MOE, num_heads=6), 4),
        (replace(TINY_MOE, num_heads=12, num_kv_heads=6), 4),
    ],
    ids=["experts", "intermediate size", "heads", "key/value heads"],
)
def test_others_are_refused_with_all_four_numbers(config: ModelConfig, size: int) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size") as caught:
        config.check_tensor_parallel(size)
    assert config.moe is not None
    assert str(caught.value).endswith(
        f"must divide the {config.num_heads} query heads and the intermediate size "
        f"{config.intermediate_size} and the {config.moe.num_experts} experts, and divide the "
        f"{config.num_kv_heads} key/value heads or be a multiple of them"
    )


def test_an_intermediate_size_that_no_layer_uses_is_no_matter() -> None:
    sparse = experts(mlp_only_layers=frozenset())
    config = replace(TINY_MOE, intermediate_size=131, moe=sparse)
    config.check_tensor_parallel(4)
    with pytest.raises(ConfigError) as caught:
        config.check_tensor_parallel(3)
    assert "131" not in str(caught.value)
