"""Norm, rotation and KV write in one kernel equal their three steps in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.layers import rotary
from qwen3_ray.layers.rotary import QKNorm, build_cos_sin
from qwen3_ray.layers.triton_rotary import qk_norm_rope_write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_BLOCKS, BLOCK_SIZE = 5, 16
NUM_POSITIONS = 300
EPS = 1e-2
HEADS = [(8, 2, 32), (4, 1, 64), (6, 6, 16), (13, 1, 128)]
"""Query heads, key/value heads, head_dim: programs see some of each kind."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BORDERS = [0, 15, 16, 31, 47, 48, 79, -1, 20, -1]
"""First and last slots of blocks and of the cache; rows 7 and 9 are padding."""


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Step:
    """What the kernel is given; `heads` as in `HEADS`."""

    heads: tuple[int, int, int]
    qkv: torch.Tensor
    positions: torch.Tensor
    norm: QKNorm
    cos_sin: torch.Tensor
    slots: torch.Tensor

    @staticmethod
    def random(heads: tuple[int, int, int], dtype: torch.dtype, slots: list[int] = BORDERS) -> Step:
        torch.manual_seed(0)
        num_heads, num_kv_heads, head_dim = heads
        width = (num_heads + 2 * num_kv_heads) * head_dim
        qkv = (3 * torch.randn(len(slots), width, device=DEVICE)).to(dtype)
        positions = torch.randint(0, NUM_POSITIONS, (len(slots),), device=DEVICE).int()
        weights = 1 + 0.3 * torch.randn(2, head_dim, device=DEVICE).to(dtype)
        cos_sin = build_cos_sin(
            head_dim=head_dim, theta=1e4, num_positions=NUM_POSITIONS, device=DEVICE
        )
        norm = QKNorm(weights[0], weights[1], EPS)
        slot_mapping = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
        return Step(heads, qkv, positions, norm, cos_sin, slot_mapping)

    def rows(self, rows: slice) -> Step:
        return Step(
            self.heads,
            self.qkv[rows].clone(),
            self.positions[rows].clone(),
            self.norm,
            self.cos_sin,
            self.slots[rows].clone(),
        )

    def empty_cache(self, dtype: torch.dtype) -> KVCache:
        _, num_kv_heads, head_dim = self.heads
        shape = (NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, head_dim)
        keys, values = (torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
        return KVCache(keys[..., None], values[:, :, None])

    def run(self, cache: KVCache) -> torch.Tensor:
        """Ours."""
        nothing = torch.zeros(0, dtype=torch.int32, device=DEVICE)
        metadata = AttentionMetadata(
            query_start_loc=nothing,
            seq_lens=nothing,
            block_tables=nothing,
            slot_mapping=self.slots,
            block_size=BLOCK_SIZE,
        )
        return qk_norm_rope_write(
            self.qkv,
            self.positions,
            self.norm,
            self.cos_sin,
            self.heads[1],
            cache=cache,
            metadata=metadata,
        )

    def real(self) -> list[int]:
        """Rows that are not padding."""
        return [row for row, slot in enumerate(self.slots.tolist()) if slot >= 0]

    def plain(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Plain torch's q, k and v of the real rows."""
        rows = self.real()
        return rotary.qk_norm_rope(
            self.qkv[rows], self.positions[rows], self.norm, self.cos_sin, self.heads[1]
        )

    def exact(self) -> torch.Tensor:
        """Queries and keys of the real rows in fp64, [num_real_rows, heads, head_dim]."""
        num_heads, num_kv_heads, head_dim = self.heads
        rows = self.real()
        x = self.qkv[rows].double().view(len(rows), -1, head_dim)[:, : num_heads + num_kv_heads]
        weights = [self.norm.q_weight] * num_heads + [self.norm.k_weight] * num_kv_heads
        x = x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * torch.stack(weights).double()
        first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos_sin[self.positions[rows].long()].double()[:, None].chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def stored(cache: KVCache, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of `slots`, each [len(slots), num_kv_heads, head_dim]."""
    block, offset = slots.long() // BLOCK_SIZE, slots.long() % BLOCK_SIZE
    return cache.key[block, :, offset, :, 0], cache.value[block, :, 0, offset]


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [*((heads, torch.float32) for heads in HEADS), *zip(HEADS, 2 * DTYPES[1:], strict=True)],
    ids=str,
)
def test_it_equals_the_three_steps(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    step = Step.random(heads, dtype)
    cache = step.empty_cache(dtype)
    q = step.run(cache)
    rows = step.real()
    k, v = stored(cache, step.slots[rows])
    plain_q, plain_k, plain_v = step.plain()
    assert q.is_contiguous()
    assert torch.equal(v, plain_v)
    ours, plain = torch.cat((q[rows], k), dim=1), torch.cat((plain_q, plain_k), dim=1)
    if dtype == torch.float32:
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=2e-6)
        return
    assert (ours != plain).double().mean() <= 0.01
    error, plain_error = ((value - step.exact()).norm() for value in (ours, plain))
    assert 0 < error <= 1.2 * plain_error


def test_padded_rows_write_nothing_and_have_finite_queries() -> None:
    dtype = torch.bfloat16
    step = Step.random(HEADS[0], dtype)
    step.qkv[7] = torch.nan
    step.positions[9] = 2**30
    cache = step.empty_cache(dtype)
    assert torch.isfinite(step.run(cache)).all()
    slots = step.slots[step.real()].long()
    untouched = torch.ones(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool, device=DEVICE)
    untouched[slots] = False
    everywhere = torch.arange(NUM_BLOCKS * BLOCK_SIZE, device=DEVICE)
    for part in stored(cache, everywhere):
        assert part[untouched].isnan().all()
        assert torch.isfinite(part[~untouched]).all()


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)
def test_the_cache_may_have_another_dtype(dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    step = Step.random(HEADS[1], dtype)
    same, other = step.empty_cache(dtype), step.empty_cache(cache_dtype)
    assert torch.equal(step.run(other), step.run(same))
    slots = step.slots[step.real()]
    for ours, expected in zip(stored(other, slots), stored(same, slots), strict=True):
        assert torch.equal(ours, expected.to(cache_dtype))


@pytest.mark.parametrize(
    ("heads", "dtype"), [(HEADS[0], torch.bfloat16), (HEADS[1], torch.float32)], ids=str
)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    step = Step.random(heads, dtype)
    whole_cache = step.empty_cache(dtype)
    whole = step.run(whole_cache)
    for rows in (slice(0, 1), slice(4, 5), slice(2, 9)):
        part = step.rows(rows)
        cache = part.empty_cache(dtype)
        assert torch.equal(part.run(cache), whole[rows])
        slots = part.slots[part.real()]
        for alone, together in zip(stored(cache, slots), stored(whole_cache, slots), strict=True):
            assert torch.equal(alone, together)


def test_neighbours_rotated_instead_of_halves_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the comparisons above: the wrong pairs, one position off, the wrong norm."""
    step = Step.random(HEADS[0], torch.float32)
    rows = step.real()
    q = step.run(step.empty_cache(torch.float32))[rows]
    later = Step(step.heads, step.qkv, step.positions + 1, step.norm, step.cos_sin, step.slots)
    swapped = QKNorm(step.norm.k_weight, step.norm.q_weight, EPS)
    other = Step(step.heads, step.qkv, step.positions, swapped, step.cos_sin, step.slots)
    assert (later.plain()[0] - q).abs().max() > 0.1
    assert (other.plain()[0] - q).abs().max() > 0.1

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        pairs = (first * cos - second * sin, second * cos + first * sin)
        return torch.stack(pairs, dim=-1).flatten(-2)

    monkeypatch.setattr(rotary, "_rotate", rotate)
    assert (step.plain()[0] - q).abs().max() > 0.1


def test_no_rows_are_no_error() -> None:
    step = Step.random(HEADS[0], torch.float32).rows(slice(0, 0))
    assert step.run(step.empty_cache(torch.float32)).shape == (0, 8, 32)
