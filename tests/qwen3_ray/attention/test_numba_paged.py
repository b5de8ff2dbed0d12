from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.attention.base import AttentionMetadata, KVCache, allocate_kv_caches
from qwen3_ray.attention.numba_paged import NumbaPagedAttention
from qwen3_ray.attention.reference import ReferenceAttention
from qwen3_ray.cpu.thread_pool import ThreadPool

BLOCK_SIZE = 32


@pytest.fixture(scope="module")
def backend() -> NumbaPagedAttention:
    return NumbaPagedAttention(ThreadPool(2))


def make_cache(num_blocks: int, num_kv_heads: int, head_dim: int) -> KVCache:
    (cache,) = allocate_kv_caches(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(num_blocks)
    cache.key.normal_(generator=generator)
    cache.value.normal_(generator=generator)
    return cache


def make_metadata(
    sequences: list[tuple[int, int]], num_blocks: int, num_padding: int = 0
) -> AttentionMetadata:
    """Each sequence is (tokens in all, rows of this step); blocks are scattered."""
    needed = [-(-seq_len // BLOCK_SIZE) for seq_len, _ in sequences]
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).int()
    tables = torch.zeros(len(sequences), max(needed), dtype=torch.int32)
    slots, starts, used = [], [0], 0
    for i, (seq_len, num_rows) in enumerate(sequences):
        tables[i, : needed[i]] = order[used : used + needed[i]]
        used += needed[i]
        positions = torch.arange(seq_len - num_rows, seq_len)
        slots.append(tables[i][positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
        starts.append(starts[-1] + num_rows)
    slots.append(torch.full((num_padding,), -1))
    return AttentionMetadata(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([seq_len for seq_len, _ in sequences], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots).int(),
        num_tokens=starts[-1],
        block_size=BLOCK_SIZE,
    )


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(
        st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
        min_size=1,
        max_size=4,
    ),
    num_kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 5]),
    head_dim=st.sampled_from([8, 32, 64, 128]),
    num_padding=st.integers(0, 3),
)
def test_attention_equals_the_oracle(
    backend: NumbaPagedAttention,
    sequences: list[tuple[int, int]],
    num_kv_heads: int,
    group: int,
    head_dim: int,
    num_padding: int,
) -> None:
    cache = make_cache(20, num_kv_heads, head_dim)
    metadata = make_metadata(sequences, 20, num_padding)
    q = torch.randn(metadata.num_tokens + num_padding, num_kv_heads * group, head_dim)
    expected = ReferenceAttention().attend(q, cache, metadata)
    torch.testing.assert_close(backend.attend(q, cache, metadata), expected, rtol=1e-5, atol=1e-5)


def test_padding_is_zero_and_not_written(backend: NumbaPagedAttention) -> None:
    metadata = make_metadata([(40, 3)], 4, num_padding=2)
    for attention in (backend, ReferenceAttention()):
        cache = make_cache(4, 2, 8)
        before = cache.key.clone()
        k, v = torch.randn(2, 5, 2, 8)
        attention.write_kv(k, v, cache, metadata)
        changed = (cache.key != before).any(-1).any(1)  # [num_blocks, block_size]
        assert int(changed.sum()) == 3
        for row, slot in enumerate(metadata.slot_mapping[:3].tolist()):
            assert torch.equal(cache.key[slot // BLOCK_SIZE, :, slot % BLOCK_SIZE], k[row])
            assert torch.equal(cache.value[slot // BLOCK_SIZE, :, slot % BLOCK_SIZE], v[row])
        assert not attention.attend(torch.randn(5, 4, 8), cache, metadata)[3:].any()


def test_large_scores_neither_overflow_nor_vanish(backend: NumbaPagedAttention) -> None:
    cache = make_cache(4, 1, 32)
    metadata = make_metadata([(100, 100)], 4)
    q = 60 * torch.randn(100, 2, 32)
    expected = ReferenceAttention().attend(q, cache, metadata)
    torch.testing.assert_close(backend.attend(q, cache, metadata), expected, rtol=1e-4, atol=1e-4)


def test_what_follows_a_row_in_its_block_is_not_read(backend: NumbaPagedAttention) -> None:
    """A block may hold what a broken request left: times a weight of 0, NaN is still NaN."""
    cache = make_cache(2, 1, 16)
    metadata = make_metadata([(37, 4)], 2)
    q = torch.randn(4, 2, 16)
    clean = backend.attend(q, cache, metadata)
    block = metadata.block_tables[0, 1]
    cache.key[block, :, 5:] = float("nan")
    cache.value[block, :, 5:] = float("nan")
    assert torch.equal(backend.attend(q, cache, metadata), clean)


@pytest.mark.parametrize("group", [1, 2, 5])
def test_bits_do_not_depend_on_rows_beside_or_threads(group: int) -> None:
    """Each position alone, as a decode step, against one prefill of all and a mixed batch."""
    num_tokens, num_kv_heads, head_dim = 75, 2, 64
    cache = make_cache(8, num_kv_heads, head_dim)
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
            num_tokens=1,
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
                num_tokens=1,
            ),
        )
        for p in range(num_tokens)
    ]
    assert not torch.equal(torch.cat(rows), expected)
