"""Logits and greedy tokens equal those of transformers on the same checkpoint."""

from __future__ import annotations

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.shard import Shard
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import CountingTPGroup, run_ranks
from tests.qwen3_ray.model.conftest import EXPERTS, SHAPES
from tests.qwen3_ray.model.helpers import (
    FP32_BOUND,
    PACKED_BOUND,
    Checkpoint,
    OracleLogits,
    load,
    random_ids,
    relative_error,
)

NUM_TOKENS = 77  # two full blocks and a part; twice the context that YaRN's shape stretches
CHUNKINGS = {"whole": None, "chunks": [40, 3, 16], "token by token": [1]}


@pytest.mark.parametrize("chunks", CHUNKINGS.values(), ids=CHUNKINGS.keys())
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_logits_equal_transformers(
    shape: str, chunks: list[int] | None, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(shape, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    logits = forward_logits(load(model_dir, dtype="float32"), ids, chunks)
    assert relative_error(logits, oracle_logits(model_dir, ids)) <= FP32_BOUND


@pytest.mark.parametrize("chunks", CHUNKINGS.values(), ids=CHUNKINGS.keys())
@pytest.mark.parametrize("shape", [*SHAPES, "demo"])
def test_packed_logits_equal_transformers(
    shape: str, chunks: list[int] | None, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(shape, "bfloat16")
    ids = random_ids(model_dir, NUM_TOKENS)
    model = load(model_dir)
    assert model.kernel_names == "fp16-panels+numba"
    logits = forward_logits(model, ids, chunks)
    assert relative_error(logits, oracle_logits(model_dir, ids)) <= PACKED_BOUND


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_kernels_equal_transformers(
    shape: str, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(shape, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    model = load(model_dir, dtype="float32", kernels="reference")
    for chunks in CHUNKINGS.values():
        logits = forward_logits(model, ids, chunks)
        assert relative_error(logits, oracle_logits(model_dir, ids)) <= FP32_BOUND


def test_greedy_tokens_of_the_demo_model_equal_transformers(
    checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    """Where the oracle's two best logits are closer than 1e-3, either token is right."""
    model_dir = checkpoint("demo", "bfloat16")
    model = load(model_dir)
    ids = random_ids(model_dir, 12)
    for _ in range(40):
        ids.append(int(forward_logits(model, ids)[-1].argmax()))
    expected = oracle_logits(model_dir, ids[:-1])[11:]
    best = expected.topk(2).values
    decided = best[:, 0] - best[:, 1] >= 1e-3
    assert decided.float().mean() >= 0.9
    assert len(set(ids[12:])) > 5
    generated = torch.tensor(ids[12:])
    assert torch.equal(expected.argmax(-1)[decided], generated[decided])


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(
    "shape", ["untied, 4:1 head groups", "tied, no head groups", "YaRN", "demo", *EXPERTS]
)
def test_ranks_compute_what_one_does(shape: str, size: int, checkpoint: Checkpoint) -> None:
    """At 4 and 8 ranks the first shape shares its two key/value heads."""
    model_dir = checkpoint(shape, "bfloat16")
    ids = random_ids(model_dir, 45)
    expected = forward_logits(load(model_dir), ids)
    logits = run_ranks(size, lambda tp: forward_logits(load(model_dir, tp), ids, [32, 1]))[0]
    assert relative_error(logits, expected) <= PACKED_BOUND


@pytest.mark.parametrize("shape", ["untied, 4:1 head groups", "experts and a dense layer"])
def test_a_forward_pass_has_two_all_reduces_a_layer_one_more_and_one_gather(
    shape: str, checkpoint: Checkpoint
) -> None:
    model_dir = checkpoint(shape, "bfloat16")

    def count(tp: TPGroup) -> dict[str, int]:
        counting = CountingTPGroup.of(tp)
        model = load(model_dir, counting).unfused()
        assert not counting.counts
        forward_logits(model, [1, 2, 3])
        return dict(counting.counts)

    num_layers = SHAPES[shape].num_layers
    assert run_ranks(2, count) == [{"all_reduce": 2 * num_layers + 1, "gather": 1}] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_shards_cover_the_vocabulary_once(size: int) -> None:
    config = SHAPES["untied, 4:1 head groups"]
    shards = [Shard.of(config, rank, size) for rank in range(size)]
    ids = [i for shard in shards for i in range(shard.vocab.start, shard.vocab.stop)]
    assert ids == list(range(config.vocab_size))
    assert len({shard.num_padded_ids for shard in shards}) == 1
