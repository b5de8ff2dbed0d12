"""Paged attention in Triton against the plain one in float64, and against itself bit by bit."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.attention import triton_paged
from qwen3_ray.attention.base import AttentionMetadata, KVCache, allocate_kv_caches
from qwen3_ray.attention.reference import ReferenceAttention
from qwen3_ray.attention.triton_paged import TritonPagedAttention
from qwen3_ray.errors import ConfigError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_BLOCKS = 40
SPLIT_LEN = 64
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
EXACT = pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
Sequences = list[tuple[int, int]]

DECODE = [(1, 1), (63, 1), (64, 1), (65, 1), (130, 1)]
MIXED = [(100, 33), (64, 1), (0, 0), (130, 3), (17, 17), (70, 0), (128, 1)]
PREFILL = [(70, 40)]


class PoisonedAttention(TritonPagedAttention):
    """Whatever is allocated and not written to holds NaN."""

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return super().attend(q, cache, metadata)
        finally:
            torch.use_deterministic_algorithms(False)


def make_backend(
    *, exact: bool, split_len: int = SPLIT_LEN, busy_programs: int = 12
) -> TritonPagedAttention:
    return PoisonedAttention(exact=exact, split_len=split_len, busy_programs=busy_programs)


def make_metadata(
    sequences: Sequences, block_size: int = 16, num_padded: int = 0, spare_blocks: int = 2
) -> AttentionMetadata:
    """Each sequence is (tokens in all, rows of this step); blocks are scattered.

    What is not used of the block tables points outside of the cache. Padded rows have no slot.
    """
    tables, slots, starts = [], [], [0]
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(7)).tolist()
    width = spare_blocks + max(-(-seq_len // block_size) for seq_len, _ in sequences)
    for seq_len, num_rows in sequences:
        table = [blocks.pop() for _ in range(-(-seq_len // block_size))]
        for position in range(seq_len - num_rows, seq_len):
            slots.append(table[position // block_size] * block_size + position % block_size)
        tables.append(table + [2**30] * (width - len(table)))
        starts.append(starts[-1] + num_rows)
    return AttentionMetadata(
        query_start_loc=ints(starts),
        seq_lens=ints([seq_len for seq_len, _ in sequences]),
        block_tables=ints(tables),
        slot_mapping=ints(slots + [-1] * num_padded),
        block_size=block_size,
    )


def ints(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def make_cache(
    metadata: AttentionMetadata,
    dtype: torch.dtype = torch.float32,
    num_kv_heads: int = 1,
    head_dim: int = 16,
) -> KVCache:
    """Random where sequences have tokens, NaN everywhere else."""
    (cache,) = allocate_kv_caches(
        num_layers=1, num_blocks=NUM_BLOCKS, block_size=metadata.block_size,
        num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype, device=DEVICE, panels=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for part in cache:
        plain = part.view(NUM_BLOCKS, num_kv_heads, metadata.block_size, head_dim)
        plain.fill_(float("nan"))
        for table, seq_len in zip(metadata.block_tables, metadata.seq_lens.tolist(), strict=True):
            for first in range(0, seq_len, metadata.block_size):
                used = plain[table[first // metadata.block_size], :, : seq_len - first]
                used.copy_(torch.randn(used.shape, generator=generator))
    return cache


def make_q(num_rows: int, num_heads: int = 2, head_dim: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_rows, num_heads, head_dim, generator=generator).to(DEVICE)


def oracle(q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
    """In float64, from the values that the tensors hold."""
    key, value = (part.double() for part in cache)
    return ReferenceAttention().attend(q.double(), KVCache(key, value), metadata)


@EXACT
@pytest.mark.parametrize(
    ("sequences", "dtype"),
    [(DECODE, dtype) for dtype in TOLERANCES]
    + [(MIXED, torch.float32), (MIXED, torch.bfloat16), (PREFILL, torch.float16)],
    ids=["decode-fp32", "decode-fp16", "decode-bf16", "mixed-fp32", "mixed-bf16", "prefill-fp16"],
)
def test_attention_equals_the_oracle(sequences: Sequences, dtype: torch.dtype, exact: bool) -> None:
    metadata = make_metadata(sequences)
    cache = make_cache(metadata, dtype)
    q = make_q(len(metadata.slot_mapping)).to(dtype)
    out = make_backend(exact=exact).attend(q, cache, metadata)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), oracle(q, cache, metadata), rtol=0, atol=TOLERANCES[dtype]
    )


@settings(max_examples=6, deadline=None)
@given(
    sequences=st.lists(
        st.integers(0, 140).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, min(n, 12)))),
        min_size=1,
        max_size=3,
    ),
    num_padded=st.integers(0, 5),
    spare_blocks=st.integers(0, 9),
    num_kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 4, 5, 8]),
    head_dim=st.sampled_from([16, 32]),
    block_size=st.sampled_from([16, 32]),
    busy_programs=st.sampled_from([1, 12]),
    exact=st.booleans(),
)
def test_any_ragged_batch_equals_the_oracle(
    sequences: Sequences,
    num_padded: int,
    spare_blocks: int,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    busy_programs: int,
    exact: bool,
) -> None:
    metadata = make_metadata(sequences, block_size, num_padded, spare_blocks)
    cache = make_cache(metadata, num_kv_heads=num_kv_heads, head_dim=head_dim)
    q = make_q(len(metadata.slot_mapping), num_kv_heads * group, head_dim)
    out = make_backend(exact=exact, busy_programs=busy_programs).attend(q, cache, metadata)
    torch.testing.assert_close(out.double(), oracle(q, cache, metadata), rtol=0, atol=1e-5)


@EXACT
@pytest.mark.parametrize("busy_programs", [1, 20])
@pytest.mark.parametrize("sequences", [DECODE[:2], [(70, 20)], [(70, 20), (9, 1)]], ids=str)
def test_rows_of_no_sequence_give_zero(
    sequences: Sequences, busy_programs: int, exact: bool
) -> None:
    """Nor do they change what others give; sequences without rows may claim any length."""
    metadata = make_metadata([*sequences, (0, 0)], num_padded=7)
    stale = replace(metadata, seq_lens=metadata.seq_lens.clone())
    stale.seq_lens[-1] = 10_000
    cache = make_cache(metadata)
    q = make_q(len(metadata.slot_mapping))
    q[-7:] = float("nan")
    out = make_backend(exact=exact, busy_programs=busy_programs).attend(q, cache, stale)
    assert torch.equal(out[-7:], torch.zeros_like(out[-7:]))
    expected = oracle(q[:-7], cache, metadata)
    torch.testing.assert_close(out[:-7].double(), expected, rtol=0, atol=1e-5)


@EXACT
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_the_cache_may_have_another_type(
    dtype: torch.dtype, cache_dtype: torch.dtype, exact: bool
) -> None:
    metadata = make_metadata([(100, 3), (65, 1)])
    cache = make_cache(metadata, cache_dtype)
    q = make_q(4).to(dtype)
    out = make_backend(exact=exact).attend(q, cache, metadata)
    expected = oracle(q, cache, metadata)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCES[dtype])


@EXACT
def test_large_scores_neither_overflow_nor_vanish(exact: bool) -> None:
    metadata = make_metadata([(130, 20)])
    cache = make_cache(metadata)
    q = 60 * make_q(20)
    out = make_backend(exact=exact).attend(q, cache, metadata)
    torch.testing.assert_close(out.double(), oracle(q, cache, metadata), rtol=0, atol=1e-4)


@EXACT
def test_what_is_not_a_number_is_not_hidden(exact: bool) -> None:
    metadata = make_metadata([(100, 1), (70, 1)])
    cache = make_cache(metadata, num_kv_heads=2)
    cache.key[metadata.block_tables[0, 2], 1, 3] = float("nan")
    out = make_backend(exact=exact).attend(make_q(2, 4), cache, metadata)
    assert out[0, 2:].isnan().all()
    assert not out[0, :2].isnan().any()
    assert not out[1].isnan().any()


def rows_at(metadata: AttentionMetadata, positions: list[int]) -> AttentionMetadata:
    """A step that decodes the first sequence at several positions, as if each were another."""
    return replace(
        metadata,
        query_start_loc=ints(list(range(len(positions) + 1))),
        seq_lens=ints([position + 1 for position in positions]),
        block_tables=metadata.block_tables[:1].expand(len(positions), -1).contiguous(),
    )


class Prefill(NamedTuple):
    """One prompt of two splits and a bit at once, with one program for each tile."""

    split_len: int
    q: torch.Tensor
    cache: KVCache
    metadata: AttentionMetadata
    exact: torch.Tensor
    fast: torch.Tensor


@pytest.fixture(
    scope="module", params=[(torch.float32, 32), (torch.bfloat16, 64)], ids=["fp32", "bf16"]
)
def prefill(request: pytest.FixtureRequest) -> Prefill:
    dtype, split_len = request.param
    length = 2 * split_len + 2
    metadata = make_metadata([(length, length)])
    cache = make_cache(metadata, dtype)
    q = make_q(length).to(dtype)
    exact, fast = (
        make_backend(exact=exact, split_len=split_len, busy_programs=1).attend(q, cache, metadata)
        for exact in (True, False)
    )
    return Prefill(split_len, q, cache, metadata, exact, fast)


def differing(backend: TritonPagedAttention, prefill: Prefill, expected: torch.Tensor) -> list[int]:
    """Positions that have other bits when decoded, all in one step."""
    split_len = prefill.split_len
    borders = [split_len - 1, split_len, split_len + 1, 2 * split_len - 1, 2 * split_len]
    positions = [0, 15, 16, *borders]
    rows = backend.attend(prefill.q[positions], prefill.cache, rows_at(prefill.metadata, positions))
    return [p for p, row in zip(positions, rows, strict=True) if not torch.equal(row, expected[p])]


@pytest.mark.parametrize("busy_programs", [1, 30])
def test_bits_of_a_row_are_those_of_any_chunk(prefill: Prefill, busy_programs: int) -> None:
    split_len, q, cache, metadata, expected, _ = prefill
    backend = make_backend(exact=True, split_len=split_len, busy_programs=busy_programs)
    assert differing(backend, prefill, expected) == []
    for start, end in ((0, 7), (split_len - 2, split_len + 3), (len(q) - 20, len(q))):
        chunk = replace(metadata, query_start_loc=ints([0, end - start]), seq_lens=ints([end]))
        out = backend.attend(q[start:end].contiguous(), cache, chunk)
        assert torch.equal(out, expected[start:end])


@pytest.mark.parametrize("busy_programs", [1, 30])
def test_bits_of_a_row_do_not_depend_on_other_sequences(
    prefill: Prefill, busy_programs: int
) -> None:
    """A chunk, a few rows and one row, of what are separate sequences here, and padded rows."""
    split_len, q, cache, metadata, expected, _ = prefill
    middle = split_len - 2
    parts = [(len(q) - 30, len(q)), (middle, middle + 4), (0, 0), (2 * split_len, len(q)), (9, 12)]
    starts, rows = [0], []
    for start, end in parts:
        starts.append(starts[-1] + end - start)
        rows += range(start, end)
    step = replace(
        metadata,
        query_start_loc=ints(starts),
        seq_lens=ints([end for _, end in parts]),
        block_tables=metadata.block_tables.expand(len(parts), -1).contiguous(),
    )
    padded = torch.cat((q[rows], q[:5]))
    backend = make_backend(exact=True, split_len=split_len, busy_programs=busy_programs)
    out = backend.attend(padded, cache, step)
    assert torch.equal(out[:-5], expected[rows])
    assert out[-5:].eq(0).all()


def test_other_splits_and_the_fast_mode_have_other_bits(prefill: Prefill) -> None:
    """The control of the tests above."""
    longer = make_backend(exact=True, split_len=2 * prefill.split_len)
    assert differing(longer, prefill, prefill.exact)
    fast = make_backend(exact=False, split_len=prefill.split_len, busy_programs=30)
    assert differing(fast, prefill, prefill.fast)


@EXACT
def test_each_row_of_a_mixed_step_is_in_one_grid(exact: bool) -> None:
    metadata = make_metadata(MIXED, num_padded=2)
    cache, q = make_cache(metadata, torch.bfloat16), make_q(len(metadata.slot_mapping)).bfloat16()
    backend = make_backend(exact=exact, split_len=64, busy_programs=30)
    launches = backend._planner(q, cache, metadata).plan(len(q), len(MIXED))
    assert len(launches) == 2
    num_writes = torch.zeros(len(q), dtype=torch.int32, device=DEVICE)
    for launch in launches:
        out = torch.full_like(q, float("nan"))
        backend._launch(launch, q, cache, metadata, out)
        num_writes += (~out.isnan()).all(-1).all(-1)
    assert num_writes.tolist() == [1] * len(q)


@EXACT
def test_large_caches_have_the_same_bits(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = make_metadata([(100, 5), (65, 1)])
    cache, q = make_cache(metadata), make_q(6)
    expected = make_backend(exact=exact).attend(q, cache, metadata)
    monkeypatch.setattr(triton_paged, "_INT32_ELEMENTS", 1)
    assert torch.equal(make_backend(exact=exact).attend(q, cache, metadata), expected)


@pytest.mark.parametrize("num_kv_heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_written_to_their_slots_and_nowhere_else(
    dtype: torch.dtype, num_kv_heads: int
) -> None:
    metadata = make_metadata([(40, 23), (17, 17)], num_padded=3)
    cache = make_cache(metadata, dtype, num_kv_heads)
    expected = KVCache(cache.key.clone(), cache.value.clone())
    k, v = torch.randn(2, 43, num_kv_heads, 16, device=DEVICE)
    written = replace(metadata, slot_mapping=metadata.slot_mapping[:-3])
    ReferenceAttention().write_kv(k[:-3], v[:-3], expected, written)
    make_backend(exact=True).write_kv(k, v, cache, metadata)
    for part, expected_part in zip(cache, expected, strict=True):
        assert torch.equal(part.nan_to_num(9), expected_part.nan_to_num(9))


@pytest.mark.parametrize("head_dim", [8, 48])
def test_sizes_that_tiles_cannot_have_are_refused(head_dim: int) -> None:
    metadata = make_metadata([(20, 1)])
    cache = make_cache(metadata, head_dim=head_dim)
    with pytest.raises(ConfigError, match="power of two"):
        make_backend(exact=True).attend(make_q(1, head_dim=head_dim), cache, metadata)
