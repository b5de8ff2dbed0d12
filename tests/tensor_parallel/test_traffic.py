"""What one rank of a group sends in a forward pass: counted, with the others not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.testing_forward import SequenceCache, forward_step
from qwen3_ray.testing_models import TINY_MOE, make_checkpoint
from qwen3_ray.testing_ranks import Call, LoneRank
from tests.tensor_parallel.greedy import HEADS_OF_4B, load

SHAPES = {"dense": HEADS_OF_4B, "experts": replace(TINY_MOE, dtype="float32")}
FLOAT32_BYTES = 4


@pytest.fixture(scope="module", params=SHAPES)
def model_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModelConfig]:
    config = SHAPES[request.param]
    return make_checkpoint(tmp_path_factory.mktemp("model"), config), config


@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 4), (7, 8)])
@torch.inference_mode()
def test_a_forward_pass_sums_twice_a_layer_and_once_more_and_gathers_logits(
    rank: int, size: int, num_tokens: int, model_dir: tuple[Path, ModelConfig]
) -> None:
    path, config = model_dir
    lone = LoneRank(rank, size)
    model = load(path, lone.group())
    assert lone.calls == []
    forward_step(
        model, SequenceCache(model, [num_tokens]), [[3] * num_tokens], [(0, 0, num_tokens)]
    )
    hidden_bytes = num_tokens * config.hidden_size * FLOAT32_BYTES
    shard_bytes = num_tokens * -(-config.vocab_size // size) * FLOAT32_BYTES
    assert lone.calls == [Call("all_reduce", hidden_bytes)] * (2 * config.num_layers + 1) + [
        Call("gather", shard_bytes)
    ]
