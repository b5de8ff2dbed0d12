from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from qwen3_ray.attention import numba_attention, numba_blocks
from qwen3_ray.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    KVCache,
    allocate_kv_caches,
)
from qwen3_ray.attention.numba_blocks import Blocks
from qwen3_ray.attention.numba_paged import NumbaPagedAttention, blocks_of
from qwen3_ray.attention.reference import ReferenceAttention, read_blocks
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.errors import ConfigError

BLOCK_SIZE = 32
LOG2_E = math.log2(math.e)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Rows = tuple[Floats, Floats, Floats]
Places = tuple[Ints, Ints, Ints, Ints]


@pytest.fixture(scope="module")
def backend() -> NumbaPagedAttention:
    return NumbaPagedAttention(ThreadPool(2))


def make_cache(
    num_blocks: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int = BLOCK_SIZE,
    dtype: torch.dtype = torch.float32,
) -> KVCache:
    (cache,) = allocate_kv_caches(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=torch.device("cpu"),
        panels=True,
    )
    generator = torch.Generator().manual_seed(num_blocks)
    cache.key.normal_(generator=generator)
    cache.value.normal_(generator=generator)
    return cache


def make_metadata(
    sequences: list[tuple[int, int]], num_blocks: int, block_size: int = BLOCK_SIZE
) -> AttentionMetadata:
    """Each sequence is (tokens in all, rows of this step); blocks are scattered."""
    needed = [-(-seq_len // block_size) for seq_len, _ in sequences]
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).int()
    tables = torch.zeros(len(sequences), max(needed), dtype=torch.int32)
    slots, starts, used = [], [0], 0
    for i, (seq_len, num_rows) in enumerate(sequences):
        tables[i, : needed[i]] = order[used : used + needed[i]]
        used += needed[i]
        positions = torch.arange(seq_len - num_rows, seq_len)
        slots.append(tables[i][positions // block_size] * block_size + positions % block_size)
        starts.append(starts[-1] + num_rows)
    return AttentionMetadata(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([seq_len for seq_len, _ in sequences], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots).int(),
        block_size=block_size,
    )


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(
        st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
        min_size=1,
        max_size=4,
    ),
    num_kv_heads=st.integers(1, 6),
    group=st.sampled_from([1, 2, 3, 4, 5]),
    head_dim=st.sampled_from([16, 32, 48, 128]),
    block_size=st.sampled_from([16, 32, 48]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_attention_equals_the_oracle(
    backend: NumbaPagedAttention,
    sequences: list[tuple[int, int]],
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    """Halves, too, are multiplied and added up in float32."""
    cache = make_cache(28, num_kv_heads, head_dim, block_size, dtype)
    metadata = make_metadata(sequences, 28, block_size)
    q = torch.randn(len(metadata.slot_mapping), num_kv_heads * group, head_dim)
    expected = ReferenceAttention().attend(q, cache, metadata)
    torch.testing.assert_close(backend.attend(q, cache, metadata), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("attention", [NumbaPagedAttention(ThreadPool(2)), ReferenceAttention()])
def test_rows_are_written_to_their_slots_and_nowhere_else(
    attention: AttentionBackend, dtype: torch.dtype
) -> None:
    metadata = make_metadata([(70, 35)], 4)
    cache = make_cache(4, 2, 16, dtype=dtype)
    all_blocks = torch.arange(4)
    before = read_blocks(cache, all_blocks)
    k, v = torch.randn(2, 35, 2, 16)
    attention.write_kv(k, v, cache, metadata)
    for was, now, rows in zip(before, read_blocks(cache, all_blocks), (k, v), strict=True):
        expected = was.clone()  # [num_kv_heads, num_blocks * block_size, head_dim]
        expected[:, metadata.slot_mapping.long()] = rows.transpose(0, 1).to(dtype)
        assert torch.equal(now, expected)


def test_halves_are_rounded_as_torch_does_and_held_in_their_range(
    backend: NumbaPagedAttention,
) -> None:
    metadata = make_metadata([(64, 64)], 2)
    cache = make_cache(2, 1, 32, dtype=torch.float16)
    k = torch.randn(64, 1, 32) * 10.0 ** torch.randint(-8, 5, (64, 1, 32))
    v = torch.full((64, 1, 32), 1e9)
    v[::2] = -70_000.0
    v[5, 0, 3] = float("nan")
    backend.write_kv(k, v, cache, metadata)
    keys, values = read_blocks(cache, metadata.block_tables[0])
    assert torch.equal(keys[0], k[:, 0].clamp(-65504, 65504).half())
    assert values[0, 5, 3].isnan()
    assert values[0].nan_to_num(65504).abs().eq(65504).all()


def test_large_scores_neither_overflow_nor_vanish(backend: NumbaPagedAttention) -> None:
    cache = make_cache(4, 1, 32)
    metadata = make_metadata([(100, 100)], 4)
    q = 60 * torch.randn(100, 2, 32)
    expected = ReferenceAttention().attend(q, cache, metadata)
    torch.testing.assert_close(backend.attend(q, cache, metadata), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_rows", [1, 4, 37])
@pytest.mark.parametrize("seq_len", [37, 49])
def test_what_follows_a_row_in_its_block_is_not_read(num_rows: int, seq_len: int) -> None:
    """A block may hold what a broken request left: times a weight of 0, NaN is still NaN."""
    backend = NumbaPagedAttention(ThreadPool(1))
    cache = make_cache(2, 1, 16)
    metadata = make_metadata([(seq_len, num_rows)], 2)
    q = torch.randn(num_rows, 2, 16)
    clean = backend.attend(q, cache, metadata)
    block, used = metadata.block_tables[0, 1], seq_len - BLOCK_SIZE
    lanes = cache.key.shape[-1]
    for slot in range(used, BLOCK_SIZE):
        cache.key[block, :, slot // lanes, :, slot % lanes] = float("nan")
    cache.value[block, :, :, used:] = float("nan")
    assert read_blocks(cache, torch.tensor([block]))[0].isnan().any(-1).sum() == BLOCK_SIZE - used
    assert torch.equal(backend.attend(q, cache, metadata), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group", [1, 2, 3, 5, 8])
def test_bits_do_not_depend_on_rows_beside_or_threads(group: int, dtype: torch.dtype) -> None:
    """Each position alone, as a decode step, against one prefill of all and a mixed batch."""
    num_tokens, num_kv_heads, head_dim = 75, 5, 64
    cache = make_cache(8, num_kv_heads, head_dim, dtype=dtype)
    whole = make_metadata([(num_tokens, num_tokens), (60, 9)], 8)
    q = torch.randn(num_tokens + 9, num_kv_heads * group, head_dim)
    expected = NumbaPagedAttention(ThreadPool(1)).attend(q, cache, whole)
    for num_threads in (2, 3):
        threaded = NumbaPagedAttention(ThreadPool(num_threads)).attend(q, cache, whole)
        assert torch.equal(threaded, expected)
    for position in range(num_tokens):
        alone = replace(
            whole,
            query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=torch.tensor([position + 1], dtype=torch.int32),
            block_tables=whole.block_tables[:1],
        )
        row = NumbaPagedAttention(ThreadPool(2)).attend(
            q[position : position + 1].contiguous(), cache, alone
        )
        assert torch.equal(row[0], expected[position])


def test_the_oracle_itself_depends_on_the_batch() -> None:
    """The control of the test above."""
    num_tokens = 75
    cache = make_cache(8, 2, 64)
    whole = make_metadata([(num_tokens, num_tokens)], 8)
    q = torch.randn(num_tokens, 4, 64)
    expected = ReferenceAttention().attend(q, cache, whole)
    rows = [
        ReferenceAttention().attend(
            q[p : p + 1],
            cache,
            replace(
                whole,
                query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
                seq_lens=torch.tensor([p + 1], dtype=torch.int32),
            ),
        )
        for p in range(num_tokens)
    ]
    assert not torch.equal(torch.cat(rows), expected)


@njit(fastmath=True)
def write_and_attend(counter: int, rows: Rows, blocks: Blocks, places: Places, out: Floats) -> None:
    """As a kernel of many layers does, with one thread; it is compiled carelessly."""
    q, k, v = rows
    query_start_loc, seq_lens, block_tables, slot_mapping = places
    numba_blocks.write_kv(0, 1, k, v, blocks, slot_mapping)
    numba_attention.attend(
        0, 1, counter, q, blocks, query_start_loc, seq_lens, block_tables,
        np.float32(0.25 * LOG2_E), out,
    )  # fmt: skip


def test_another_kernel_gets_the_same_bits_and_every_output(backend: NumbaPagedAttention) -> None:
    cache = make_cache(8, 2, 16)
    metadata = make_metadata([(75, 40), (60, 1)], 8)
    q, k, v = torch.randn(41, 6, 16), torch.randn(41, 2, 16), torch.randn(41, 2, 16)
    counter, out = np.zeros(1, np.int64), np.full(q.shape, np.nan, np.float32)
    write_and_attend(
        counter.ctypes.data,
        (q.numpy(), k.numpy(), v.numpy()),
        blocks_of(cache),
        (
            metadata.query_start_loc.numpy(),
            metadata.seq_lens.numpy(),
            metadata.block_tables.numpy(),
            metadata.slot_mapping.numpy(),
        ),
        out,
    )
    expected = ReferenceAttention().attend(q, cache, metadata)
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-5, atol=1e-5)
    backend.write_kv(k, v, cache, metadata)
    assert torch.equal(backend.attend(q, cache, metadata), torch.from_numpy(out))


@pytest.mark.parametrize(("block_size", "head_dim"), [(24, 16), (16, 24)])
def test_sizes_that_panels_cannot_hold_are_refused(block_size: int, head_dim: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 16"):
        make_cache(1, 1, head_dim, block_size)


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("meta")], ids=str)
def test_without_panels_blocks_lie_plainly(device: torch.device) -> None:
    (cache,) = allocate_kv_caches(
        num_layers=1, num_blocks=3, block_size=4, num_kv_heads=2, head_dim=6,
        dtype=torch.float32, device=device, panels=False,
    )  # fmt: skip
    assert cache.key.view(3, 2, 4, 6).shape == cache.value.view(3, 2, 4, 6).shape
    assert cache.key[0, 0, 1, 0].storage_offset() == cache.value[0, 0, 0, 1].storage_offset() == 6
