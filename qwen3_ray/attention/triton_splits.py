"""Splits of the context in Triton: whose they are, how long, and how their results are merged."""

from __future__ import annotations

# ruff: noqa: PLR0917 - Triton's functions are called by position
import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function, kernel

_LOWEST = tl.constexpr(-1e30)
"""A maximum of nothing; infinities would differ by NaN."""
_SEARCHED = tl.constexpr(256)
"""Sequences that are looked at at once."""
_STAGES = tl.constexpr(4)
"""Partial results of which one is merged while others are being read."""


@device_function
def find_rows(
    query_start_loc: tl.tensor,
    seq_lens: tl.tensor,
    tile: tl.tensor,
    num_rows: tl.tensor,
    num_seqs: tl.tensor,
    min_rows: tl.tensor,
    max_rows: tl.tensor,
    tiles_of_each: tl.tensor,
    rows_per_tile: tl.constexpr,
    spare: tl.constexpr,
    alike: tl.constexpr,
) -> tl.tensor:
    """Sequence of a tile, its first row, the end of the sequence's rows, and the seq_len.

    If all sequences are alike, each has `tiles_of_each` tiles of one row or more. Otherwise
    sequence `i` has the tiles from `query_start_loc[i] // rows_per_tile + spare * i` on: with one
    spare tile each at least as many as it needs, and tiles of one row need none. Rows that belong
    to no sequence are those of sequence `num_seqs`, whose seq_len is 0. The first row is not before
    the end where a tile has no rows, nor where the sequence has less than `min_rows` or more than
    `max_rows`.
    """
    if alike:
        sequence = tile // tiles_of_each
        start = tl.load(query_start_loc + sequence)
        first_row = start + tile % tiles_of_each
    else:
        sequence = _sequence_of(query_start_loc, tile, num_seqs, rows_per_tile, spare)
        start = tl.load(query_start_loc + sequence)
        first_row = start + (tile - start // rows_per_tile - spare * sequence) * rows_per_tile
    is_sequence = sequence < num_seqs
    end = tl.load(query_start_loc + sequence + 1, mask=is_sequence, other=num_rows)
    seq_len = tl.load(seq_lens + sequence, mask=is_sequence, other=0)
    is_excluded = is_sequence & ((end - start < min_rows) | (end - start > max_rows))
    return sequence, first_row, tl.where(is_excluded, first_row, end), seq_len


@device_function
def _sequence_of(
    query_start_loc: tl.tensor,
    tile: tl.tensor,
    num_seqs: tl.tensor,
    rows_per_tile: tl.constexpr,
    spare: tl.constexpr,
) -> tl.tensor:
    """See `find_rows`; all that may be are compared at once, a search would wait at each step."""
    sequence = 0
    for first in range(0, num_seqs, _SEARCHED):
        following = first + 1 + tl.arange(0, _SEARCHED)
        exists = following <= num_seqs
        starts = tl.load(query_start_loc + following, mask=exists, other=0)
        is_before = exists & (starts // rows_per_tile + spare * following <= tile)
        sequence += tl.sum(is_before.to(tl.int32), 0)
    return sequence


@device_function
def blocks_per_split(
    seq_len: tl.tensor,
    least: tl.tensor,
    num_programs: tl.tensor,
    block_n: tl.constexpr,
    anchored: tl.constexpr,
) -> tl.tensor:
    """How many blocks of keys a split has; if not anchored, as many as give each program one."""
    blocks = least
    if not anchored:
        blocks = tl.maximum(least, tl.cdiv(tl.cdiv(seq_len, block_n), num_programs))
    return blocks


@device_function
def nothing(num_lanes: tl.constexpr, head_dim: tl.constexpr) -> tl.tensor:
    """The result of no keys: largest score, sum of weights, weighted sum of values."""
    top = tl.full([num_lanes], _LOWEST, tl.float32)
    zeros = tl.zeros([num_lanes], tl.float32)
    return top, zeros, tl.zeros([num_lanes, head_dim], tl.float32)


@device_function
def merge_next(
    top: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    next_top: tl.tensor,
    next_weight: tl.tensor,
    next_total: tl.tensor,
) -> tl.tensor:
    """The result of the splits so far and of the next one; both [rows] and [rows, head_dim]."""
    new_top = tl.maximum(top, next_top)
    fade = tl.math.exp2(top - new_top)
    next_fade = tl.math.exp2(next_top - new_top)
    new_weight = weight * fade + next_weight * next_fade
    new_total = total * fade[:, None] + next_total * next_fade[:, None]
    return new_top, new_weight, new_total


@device_function
def average(weight: tl.tensor, total: tl.tensor) -> tl.tensor:
    """What a row gives: 0 if it saw nothing, NaN if something it saw was NaN.

    A zero has no sign: it would depend on how many splits that a row does not see were merged.
    """
    return total / tl.where(weight == 0.0, 1.0, weight)[:, None] + 0.0


@kernel(
    do_not_specialize=[
        "query_start_loc", "seq_lens", "num_rows", "num_seqs", "split_blocks", "num_partials",
        "num_programs", "min_rows", "max_rows",
    ]
)  # fmt: skip
def merge(
    query_start_loc: tl.tensor,
    seq_lens: tl.tensor,
    partial_stats: tl.tensor,
    partial_totals: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_seqs: tl.tensor,
    split_blocks: tl.tensor,
    num_partials: tl.tensor,
    num_programs: tl.tensor,
    min_rows: tl.tensor,
    max_rows: tl.tensor,
    head_dim: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    block_n: tl.constexpr,
    anchored: tl.constexpr,
    tile_per_sequence: tl.constexpr,
) -> None:
    """Grid [slots, num_kv_heads]: what `attend` left of a slot's row, merged in order into `out`.

    Arguments are those of `attend`, whose `num_programs` shared the splits of a tile.
    """
    slot, kv_head = tl.program_id(0), tl.program_id(1)
    _, row, end, seq_len = find_rows(
        query_start_loc, seq_lens, slot, num_rows, num_seqs, min_rows, max_rows, max_rows, 1, 0,
        tile_per_sequence,
    )  # fmt: skip
    if row >= end:
        return

    split = blocks_per_split(seq_len, split_blocks, num_programs, block_n, anchored)
    num_keys = tl.maximum(seq_len - end + row + 1, 0)
    num_splits = tl.cdiv(tl.cdiv(num_keys, block_n), split)
    lanes = tl.arange(0, padded_group)
    is_head = lanes < group
    heads = kv_head * group + lanes
    dims = tl.arange(0, head_dim)[None, :]
    first = (slot * tl.num_programs(1) * group + heads) * num_partials
    top, weight, total = nothing(padded_group, head_dim)
    for index in tl.range(0, num_splits, num_stages=_STAGES):
        at = first + index
        places = at[:, None] * head_dim + dims
        top, weight, total = merge_next(
            top,
            weight,
            total,
            tl.load(partial_stats + at * 2, mask=is_head, other=_LOWEST),
            tl.load(partial_stats + at * 2 + 1, mask=is_head, other=0.0),
            tl.load(partial_totals + places, mask=is_head[:, None], other=0.0),
        )
    places = (row * tl.num_programs(1) * group + heads)[:, None] * head_dim + dims
    tl.store(out + places, average(weight, total).to(out.dtype.element_ty), mask=is_head[:, None])
