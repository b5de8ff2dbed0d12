"""Each way in which the forward pass could be wrong makes the comparison with the oracle fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.attention.reference import ReferenceAttention
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers import rotary
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.layers.linear import ColumnParallelLinear, Matrix
from qwen3_ray.layers.rotary import QKNorm
from qwen3_ray.model.qwen3 import Attention, Qwen3ForCausalLM
from qwen3_ray.testing_forward import SequenceCache, forward_logits, forward_step
from qwen3_ray.testing_models import run_ranks
from tests.qwen3_ray.model.helpers import (
    FP32_BOUND,
    VISIBLE,
    Checkpoint,
    ForgetfulGroup,
    OracleLogits,
    load,
    random_ids,
    relative_error,
)

SHAPE = "untied, 4:1 head groups"
NUM_TOKENS = 50
CHUNK = 32

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class ShiftedQueries(ReferenceKernels):
    """RoPE shifted by one position for the queries only."""

    def __init__(self) -> None:
        super().__init__()
        self.qk_norm_rope = self._rope

    def _rope(self, qkv: torch.Tensor, positions: torch.Tensor, *rest: object) -> Heads:
        _, k, v = rotary.qk_norm_rope(qkv, positions, *rest)
        return rotary.qk_norm_rope(qkv, positions + 1, *rest)[0], k, v


class ShiftedChunk(ReferenceKernels):
    """RoPE shifted by one position for all rows beyond the first chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.qk_norm_rope = self._rope

    def _rope(self, qkv: torch.Tensor, positions: torch.Tensor, *rest: object) -> Heads:
        return rotary.qk_norm_rope(qkv, positions + (positions >= CHUNK).int(), *rest)


class NoQueryNorm(ReferenceKernels):
    """Queries are rotated but not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.qk_norm_rope = self._rope

    def _rope(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        norm: QKNorm,
        cos_sin: torch.Tensor,
        num_kv_heads: int,
    ) -> Heads:
        _, k, v = rotary.qk_norm_rope(qkv, positions, norm, cos_sin, num_kv_heads)
        heads = qkv.view(qkv.shape[0], -1, k.shape[-1])[:, : -2 * num_kv_heads]
        cos, sin = cos_sin[positions.long()][:, None].chunk(2, dim=-1)
        return rotary._rotate(heads, cos, sin), k, v


class WrongGroups(ReferenceAttention):
    """Query head h reads key/value head h modulo their number, not h over the group's size."""

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        num_kv_heads = cache.key.shape[1]
        order = torch.arange(q.shape[1]).view(-1, num_kv_heads).T.flatten()
        out = torch.empty_like(q)
        out[:, order] = super().attend(q[:, order], cache, metadata)
        return out


@dataclass(frozen=True)
class SwappedHeads:
    """Two query heads of one group swapped in q_proj, not in o_proj."""

    inner: Matrix
    head_dim: int

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner.matmul(x)
        first, second, rest = y.split(
            [self.head_dim, self.head_dim, y.shape[1] - 2 * self.head_dim], dim=1
        )
        return torch.cat((second, first, rest), dim=1)


def with_attention(
    model: Qwen3ForCausalLM, change: Callable[[Attention], Attention]
) -> Qwen3ForCausalLM:
    mutant = copy.copy(model)
    mutant._layers = tuple(
        replace(layer, attention=change(layer.attention)) for layer in model._layers
    )
    return mutant


def with_kernels(kernels: ReferenceKernels) -> Callable[[Qwen3ForCausalLM], torch.Tensor]:
    return lambda model: chunked(
        with_attention(model, lambda attention: replace(attention, kernels=kernels))
    )


def chunked(model: Qwen3ForCausalLM) -> torch.Tensor:
    return forward_logits(model, ids_of(model), [CHUNK, 1])


def ids_of(model: Qwen3ForCausalLM) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (NUM_TOKENS,), generator=generator).tolist()


@contextmanager
def interleaved_rotation() -> Iterator[None]:
    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        pairs = (first * cos - second * sin, second * cos + first * sin)
        return torch.stack(pairs, dim=-1).flatten(-2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotary, "_rotate", rotate)
        yield


def interleaved(model: Qwen3ForCausalLM) -> torch.Tensor:
    with interleaved_rotation():
        return chunked(model)


def swapped_heads(model: Qwen3ForCausalLM) -> torch.Tensor:
    def swap(attention: Attention) -> Attention:
        matrix = SwappedHeads(attention.qkv_proj.matrix, model.config.head_dim)
        return replace(attention, qkv_proj=ColumnParallelLinear(matrix))

    return chunked(with_attention(model, swap))


def wrong_groups(model: Qwen3ForCausalLM) -> torch.Tensor:
    kernels = ReferenceKernels()
    kernels.attention = WrongGroups()
    return with_kernels(kernels)(model)


def reused_block(model: Qwen3ForCausalLM) -> torch.Tensor:
    """Another sequence gets the first sequence's first block while that still runs."""
    ids = ids_of(model)
    cache = SequenceCache(model, [NUM_TOKENS, 4])
    first = forward_step(model, cache, [ids], [(0, 0, CHUNK)])
    cache.block_tables[1] = cache.block_tables[0][:1]
    forward_step(model, cache, [ids, [7, 8, 9]], [(1, 0, 3)])
    rest = forward_step(model, cache, [ids], [(0, CHUNK, NUM_TOKENS - CHUNK)])
    assert first is not None
    assert rest is not None
    return torch.cat((first, rest))


MUTATIONS: dict[str, Callable[[Qwen3ForCausalLM], torch.Tensor]] = {
    "RoPE shifted for q only": with_kernels(ShiftedQueries()),
    "RoPE shifted beyond a chunk border": with_kernels(ShiftedChunk()),
    "interleaved rotation": interleaved,
    "two heads swapped in q_proj only": swapped_heads,
    "q_norm dropped": with_kernels(NoQueryNorm()),
    "KV heads mapped wrongly": wrong_groups,
    "a freed block reused": reused_block,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_oracle_notices(
    mutation: str, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(SHAPE, "float32")
    model = load(model_dir, dtype="float32", kernels="reference")
    expected = oracle_logits(model_dir, ids_of(model))
    assert relative_error(chunked(model), expected) <= FP32_BOUND
    assert relative_error(MUTATIONS[mutation](model), expected) > VISIBLE


@pytest.mark.parametrize("dropped", range(5), ids=["embedding", "o 0", "down 0", "o 1", "down 1"])
def test_the_oracle_notices_a_dropped_all_reduce(
    dropped: int, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(SHAPE, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)

    def run(tp: TPGroup) -> torch.Tensor:
        mutant = ForgetfulGroup.of(tp, period=5, dropped=dropped)
        return forward_logits(load(model_dir, mutant, dtype="float32").unfused(), ids)

    logits = run_ranks(2, run)[0]
    assert relative_error(logits, oracle_logits(model_dir, ids)) > VISIBLE
