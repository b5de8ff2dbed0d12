"""Paged attention in Triton: tiles of query rows over splits of the context, in any batch.

A tile is a few rows of one sequence times the query heads of one key/value head. The context is cut
into splits; what a tile makes of one is its partial result: the largest score, the sum of the
weights and the weighted sum of values, each from zero. Anchored splits begin at position 0 and have
one length, and partial results are merged in ascending order: by the program that walks over all of
a tile's splits, or by `merge`, where several programs share them and leave them in memory. Either
way the same instructions give the same bits, given these kernels are compiled without fusing what
is not written as `fma`. A block of keys that a row does not see changes nothing: its weights are 0
and what was there is multiplied by 1.
"""

from __future__ import annotations

# ruff: noqa: PLR0917 - Triton's functions are called by position
import triton.language as tl

from qwen3_ray.attention.triton_splits import (
    average,
    blocks_per_split,
    find_rows,
    merge_next,
    nothing,
)
from qwen3_ray.gpu.triton_dot import dot
from qwen3_ray.gpu.triton_jit import device_function, kernel


@device_function
def _lanes(
    first_row: tl.tensor,
    end: tl.tensor,
    kv_head: tl.tensor,
    group: tl.constexpr,
    block_m: tl.constexpr,
) -> tl.tensor:
    """Of a tile's lanes: their rows, whether those are a sequence's, and their query heads."""
    lanes = tl.arange(0, block_m)
    rows = first_row + lanes // group
    is_row = rows < tl.minimum(end, first_row + block_m // group)
    return rows, is_row, kv_head * group + lanes % group


@device_function
def _own_blocks(num_blocks: tl.tensor, split: tl.tensor, num_programs: tl.tensor) -> tl.tensor:
    """First block of keys of this program's splits, and where they end."""
    share = tl.cdiv(tl.cdiv(num_blocks, split), num_programs) * split
    first_block = tl.program_id(2) * share
    return first_block, tl.minimum(first_block + share, num_blocks)


@device_function
def _see_block(
    q: tl.tensor,
    top: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    block_table: tl.tensor,
    first_key: tl.tensor,
    num_keys: tl.tensor,
    limits: tl.tensor,
    num_kv_heads: tl.tensor,
    score_scale: tl.tensor,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    block_n: tl.constexpr,
    is_large: tl.constexpr,
) -> tl.tensor:
    """A partial result with one more block of keys; nothing from `num_keys` on is read.

    `key_cache` and `value_cache` begin with the head of the first block.
    """
    columns = tl.arange(0, block_n)
    positions, exists = first_key + columns, columns < num_keys - first_key
    blocks = tl.load(block_table + positions // block_size, mask=exists, other=0)
    if is_large:
        blocks = blocks.to(tl.int64)
    slots = blocks * num_kv_heads * block_size + positions % block_size
    places = slots[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
    keys = tl.load(key_cache + places, mask=exists[:, None], other=0.0).to(q.dtype)
    scores = dot(q, tl.trans(keys), tl.zeros([q.shape[0], block_n], tl.float32))
    is_seen = positions[None, :] < limits[:, None]
    scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * score_scale)
    weights = tl.math.exp2(tl.math.fma(scores, score_scale, -new_top[:, None]))
    fade = tl.math.exp2(top - new_top)
    new_weight = weight * fade + tl.sum(weights, 1)
    values = tl.load(value_cache + places, mask=exists[:, None], other=0.0).to(q.dtype)
    new_total = dot(weights.to(q.dtype), values, total * fade[:, None])
    return new_top, new_weight, new_total


@device_function
def _store(
    partial_stats: tl.tensor,
    partial_totals: tl.tensor,
    at: tl.tensor,
    is_row: tl.tensor,
    top: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    head_dim: tl.constexpr,
) -> None:
    """Leave a partial result to `merge`."""
    tl.store(partial_stats + at * 2, top, mask=is_row)
    tl.store(partial_stats + at * 2 + 1, weight, mask=is_row)
    places = at[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
    tl.store(partial_totals + places, total, mask=is_row[:, None])


@kernel(
    do_not_specialize=[
        "query_start_loc", "seq_lens", "block_tables", "num_rows", "num_seqs", "table_width",
        "split_blocks", "num_partials", "min_rows", "max_rows",
    ]
)  # fmt: skip
def attend(
    q: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    query_start_loc: tl.tensor,
    seq_lens: tl.tensor,
    block_tables: tl.tensor,
    out: tl.tensor,
    partial_stats: tl.tensor,
    partial_totals: tl.tensor,
    num_rows: tl.tensor,
    num_seqs: tl.tensor,
    table_width: tl.tensor,
    split_blocks: tl.tensor,
    num_partials: tl.tensor,
    min_rows: tl.tensor,
    max_rows: tl.tensor,
    score_scale: tl.tensor,
    head_dim: tl.constexpr,
    group: tl.constexpr,
    block_size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    anchored: tl.constexpr,
    tile_per_sequence: tl.constexpr,
    is_large: tl.constexpr,
) -> None:
    """Grid [tiles, num_kv_heads, programs that share the splits of a tile].

    Of sequences with `min_rows` to `max_rows` rows; rows of no sequence give 0. With one program
    per tile results go to `out`, else partial ones to `partial_stats` [slots, num_heads,
    num_partials, 2] and `partial_totals` [slots, num_heads, num_partials, head_dim], where a slot
    is a row, or one of `max_rows` rows of each sequence if all have just one tile.

    Args:
        q: and out, contiguous [num_rows, num_heads, head_dim].
        split_blocks: blocks of `block_n` keys in a split, at least so many if not anchored.
        score_scale: of exponents to the base 2.
        is_large: whether int32 cannot count a cache's elements.
    """
    rows_per_tile: tl.constexpr = block_m // group
    kv_head, num_kv_heads, num_programs = tl.program_id(1), tl.num_programs(1), tl.num_programs(2)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # those with most to do begin first
    sequence, first_row, end, seq_len = find_rows(
        query_start_loc, seq_lens, tile, num_rows, num_seqs, min_rows, max_rows, 1, rows_per_tile,
        1, tile_per_sequence,
    )  # fmt: skip
    if first_row >= end:
        return

    rows, is_row, heads = _lanes(first_row, end, kv_head, group, block_m)
    places = rows * num_kv_heads * group + heads
    lane_places = places[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
    q_tile = tl.load(q + lane_places, mask=is_row[:, None], other=0.0)
    limits = tl.where(is_row, seq_len - end + rows + 1, 0)
    num_keys = tl.maximum(seq_len - end + tl.minimum(first_row + rows_per_tile, end), 0)

    split = blocks_per_split(seq_len, split_blocks, num_programs, block_n, anchored)
    first_block, last_block = _own_blocks(tl.cdiv(num_keys, block_n), split, num_programs)
    first_slot = sequence * max_rows if tile_per_sequence else first_row
    partials = (places + (first_slot - first_row) * num_kv_heads * group) * num_partials

    top, weight, total = nothing(block_m, head_dim)
    merged_top, merged_weight, merged_total = top, weight, total
    key_cache += kv_head * block_size * head_dim
    value_cache += kv_head * block_size * head_dim
    block_table = block_tables + sequence.to(tl.int64) * table_width
    for block in range(first_block, last_block):
        # A split ends here, not in its last block's turn: Triton 3.6 does not wait for a product
        # that is read in a branch of its own turn if it waits for another one in the loop.
        if anchored:  # noqa: SIM102 - known at compile time, the other is not
            if (block > first_block) & (block % split == 0):
                if num_programs == 1:
                    merged_top, merged_weight, merged_total = merge_next(
                        merged_top, merged_weight, merged_total, top, weight, total
                    )
                else:
                    at = partials + block // split - 1
                    _store(partial_stats, partial_totals, at, is_row, top, weight, total, head_dim)
                top, weight, total = nothing(block_m, head_dim)
        top, weight, total = _see_block(
            q_tile, top, weight, total, key_cache, value_cache, block_table, block * block_n,
            num_keys, limits, num_kv_heads, score_scale, head_dim, block_size, block_n, is_large,
        )  # fmt: skip
    if num_programs == 1:
        _, weight, total = merge_next(merged_top, merged_weight, merged_total, top, weight, total)
        result = average(weight, total).to(out.dtype.element_ty)
        tl.store(out + lane_places, result, mask=is_row[:, None])
    elif first_block < last_block:
        at = partials + (last_block - 1) // split
        _store(partial_stats, partial_totals, at, is_row, top, weight, total, head_dim)
