"""Whole forward passes on the GPU's kernels, interpreted where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from qwen3_ray.attention.base import AttentionMetadata
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import KernelChoice, load_model
from qwen3_ray.testing_forward import SequenceCache, forward_step
from qwen3_ray.testing_models import engine_config
from tests.qwen3_ray.model.helpers import Checkpoint, OracleLogits, random_ids, relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DENSE, EXPERTS = "untied, 4:1 head groups", "experts and a dense layer"
BLOCK_SIZE = 16
NUM_TOKENS = 19
CHUNKS = [14, 4, 1]
"""A prompt, the rest of it beyond a block's border, and one more token."""
BOUND = 1e-5
SIXTEEN_BITS_BOUND = 0.05


def load(
    checkpoint: Checkpoint,
    shape: str = DENSE,
    kernels: KernelChoice = "triton",
    *,
    numerics: str = "exact",
    dtype: str = "float32",
) -> Qwen3ForCausalLM:
    model_dir = checkpoint(shape, "bfloat16")
    config = engine_config(model_dir, numerics=numerics, dtype=dtype)
    model_config = ModelConfig.from_dir(model_dir)
    return load_model(config, model_config, TPGroup.single(), device=DEVICE, kernels=kernels)


def ids_of(checkpoint: Checkpoint, shape: str = DENSE) -> list[int]:
    return random_ids(checkpoint(shape, "bfloat16"), NUM_TOKENS)


def logits_of(
    model: Qwen3ForCausalLM, ids: list[int], chunks: Sequence[int] | None = None
) -> torch.Tensor:
    """At every position, by chunks of the given sizes; None: all at once."""
    cache, parts, done = SequenceCache(model, [len(ids)], block_size=BLOCK_SIZE), [], 0
    for chunk in chunks or [len(ids)]:
        logits = forward_step(model, cache, [ids], [(0, done, chunk)])
        assert logits is not None
        parts.append(logits)
        done += chunk
    assert done == len(ids)
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("shape", "numerics"), [(DENSE, "exact"), (DENSE, "fast"), (EXPERTS, "exact")]
)
def test_logits_are_plain_torchs_and_exact_ones_do_not_depend_on_chunks(
    shape: str, numerics: str, checkpoint: Checkpoint
) -> None:
    """Fast ones do: the control that orders of sums are seen here."""
    ids = ids_of(checkpoint, shape)
    expected = logits_of(load(checkpoint, shape, "reference"), ids)
    model = load(checkpoint, shape, numerics=numerics)
    assert model.exact == (numerics == "exact")
    assert model.kernel_names.endswith(f"triton-{numerics}")
    whole, chunked = logits_of(model, ids), logits_of(model, ids, CHUNKS)
    assert relative_error(whole, expected) < BOUND
    assert relative_error(chunked, expected) < BOUND
    assert torch.equal(whole, chunked) == model.exact


def test_two_sequences_in_one_step_have_the_bits_of_each_alone(checkpoint: Checkpoint) -> None:
    model, ids = load(checkpoint), ids_of(checkpoint)
    other = ids[::-1]
    cache = SequenceCache(model, [NUM_TOKENS, NUM_TOKENS], block_size=BLOCK_SIZE)
    forward_step(model, cache, [ids, other], [(0, 0, 16), (1, 0, 5)])
    together = forward_step(model, cache, [ids, other], [(1, 5, 2), (0, 16, 1)])
    assert together is not None
    assert torch.equal(together[:2], logits_of(model, other[:7])[5:])
    assert torch.equal(together[2:], logits_of(model, ids[:17])[16:])


def test_padded_rows_change_no_bits_and_stay_finite(checkpoint: Checkpoint) -> None:
    """Graphs have more rows than their step: with slot -1, of no sequence."""
    model, ids = load(checkpoint), ids_of(checkpoint)
    exact = SequenceCache(model, [NUM_TOKENS], block_size=BLOCK_SIZE)
    metadata = exact.metadata([(0, 0, 17)])
    expected = forward(model, ids[:17], exact, metadata)
    padded = SequenceCache(model, [NUM_TOKENS], block_size=BLOCK_SIZE)
    padding = torch.full((2,), -1, dtype=torch.int32, device=DEVICE)
    metadata = replace(metadata, slot_mapping=torch.cat((metadata.slot_mapping, padding)))
    hidden = forward(model, ids, padded, metadata)
    assert torch.equal(hidden[:17], expected)
    assert torch.isfinite(hidden).all()
    for ours, theirs in zip(padded.caches, exact.caches, strict=True):
        assert torch.equal(ours.key, theirs.key)
        assert torch.equal(ours.value, theirs.value)


def forward(
    model: Qwen3ForCausalLM, ids: list[int], cache: SequenceCache, metadata: AttentionMetadata
) -> torch.Tensor:
    rows = torch.arange(len(ids), dtype=torch.int32, device=DEVICE)
    input_ids = torch.tensor(ids, dtype=torch.int32, device=DEVICE)
    return model.forward(input_ids, rows, cache.caches, metadata)


def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(
    checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - seconds to import

    model_dir, ids = checkpoint(DENSE, "bfloat16"), ids_of(checkpoint)
    truth = oracle_logits(model_dir, ids)
    theirs = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.bfloat16, attn_implementation="eager"
    )
    with torch.no_grad():
        their_error = (theirs(torch.tensor([ids])).logits[0].float() - truth).norm()
    logits = logits_of(load(checkpoint, dtype="bfloat16"), ids).cpu()
    error = (logits - truth).norm()
    assert 0 < error <= 1.2 * their_error
    assert error < SIXTEEN_BITS_BOUND * truth.norm()
