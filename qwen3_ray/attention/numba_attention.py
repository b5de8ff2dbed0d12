"""Paged attention on CPU by tiles: one kernel for prefill, chunks and decode alike.

A row's bits depend on its own query and the cached keys and values alone: blocks are anchored at
position 0 and taken in order by a running softmax, and `numba_tiles` adds up every product in one
order whatever stands beside it. Threads, tiles and sequences only decide who computes a row.

`q` and `out` are [num_rows, num_heads, head_dim], caches as `base.KVCache` has them on CPU, of
floats or of halves. An item with few rows takes neighbouring heads: of each block all their keys,
then all their values. While one head's are multiplied, the next are fetched.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qwen3_ray.attention.numba_blocks import Blocks
from qwen3_ray.attention.numba_heads import Lanes, Scratch, add_values, even, score, turn_to_weights
from qwen3_ray.attention.numba_softmax import LOWEST
from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_sync import atomic_add

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]

_LOG2_E = math.log2(math.e)
_ITEM_LANES = 96  # read the cache once; what they hold stays in the second cache
_ITEM_HEADS = 4  # of items with few lanes: memory that lies together is read faster
_FEW_LANES = 24
_ZERO = np.float32(0)


class _Item(NamedTuple):
    """What a thread computes at a time: some rows of one sequence, some key/value heads."""

    row: int
    num_rows: int
    position: int
    """Of the first row."""
    head: int
    num_heads: int


def score_scale(head_dim: int) -> np.float32:
    """What makes a product of query and key the power of two that it weighs."""
    return np.float32(head_dim**-0.5 * _LOG2_E)


# A caller's fastmath would be taken over if this did not refuse it.
@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def attend(
    part: int,  # noqa: ARG001 - as of all kernels
    num_parts: int,
    counter: int,
    q: _Floats,
    blocks: Blocks,
    query_start_loc: _Ints,
    seq_lens: _Ints,
    block_tables: _Ints,
    scale: np.float32,
    out: _Floats,
) -> None:
    """Take items, sequence x some rows x some key/value heads, until none is left.

    Before any thread comes here, all must be done with `write_kv` and with what made `q`; `out` is
    complete when all have returned.

    Args:
        part: not used: work goes to who asks.
        num_parts: threads that take part.
        counter: address of an int64, 0 when the first thread comes.
        q: contiguous in head_dim.
        blocks: of the layer.
        query_start_loc: as the three that follow, see `AttentionMetadata`.
        seq_lens: of all sequences.
        block_tables: entries beyond a sequence's length are not read.
        scale: `score_scale(head_dim)`.
        out: need not be initialised.
    """
    num_kv_heads, num_seqs = blocks.num_kv_heads, seq_lens.shape[0]
    group = q.shape[1] // num_kv_heads
    item_rows = max(1, _ITEM_LANES // group)
    # A long sequence among short ones must still keep all threads busy.
    item_heads = max(1, min(_ITEM_HEADS, num_kv_heads // num_parts))
    num_lanes = max(even(min(item_rows, q.shape[0]) * group), item_heads * _FEW_LANES)
    scratch = (
        np.empty((num_lanes, blocks.head_dim), np.float32),
        np.empty((num_lanes, blocks.block_size), np.float32),
        np.empty((num_lanes, blocks.head_dim), np.float32),
        np.empty((num_lanes, 2), np.float32),
    )
    seq, first_item, num_items, num_heads, num_shares = -1, 0, 0, 1, 1
    while True:
        item = atomic_add(counter, 1)
        while item >= first_item + num_items:
            seq += 1
            if seq == num_seqs:
                return
            first_item += num_items
            num_rows = query_start_loc[seq + 1] - query_start_loc[seq]
            num_heads = item_heads if num_rows * group <= _FEW_LANES else 1
            num_shares = (num_kv_heads + num_heads - 1) // num_heads
            num_items = (num_rows + item_rows - 1) // item_rows * num_shares
        # The last rows first: they have the most keys, and short items fill up the end.
        index = first_item + num_items - 1 - item
        row = query_start_loc[seq] + index // num_shares * item_rows
        stop = query_start_loc[seq + 1]
        position = seq_lens[seq] - stop + row
        head = index % num_shares * num_heads
        heads = min(num_heads, num_kv_heads - head)
        where = _Item(row, min(item_rows, stop - row), position, head, heads)
        _attend_item(where, q, blocks, block_tables[seq], scale, scratch, out)


@callee
def _attend_item(
    item: _Item,
    q: _Floats,
    blocks: Blocks,
    block_table: _Ints,
    scale: np.float32,
    scratch: Scratch,
    out: _Floats,
) -> None:
    queries, _, sums, softmax = scratch
    group = q.shape[1] // blocks.num_kv_heads
    num_lanes = item.num_rows * group
    distance = even(num_lanes)
    for lane in range(item.num_heads * distance):
        row, query_head = _owner(item, lane, group)
        for d in range(q.shape[2]):  # to assign slices takes Numba seconds to compile
            queries[lane, d] = q[row, query_head, d]
        softmax[lane, 0], softmax[lane, 1] = LOWEST, _ZERO
    last_block = (item.position + item.num_rows - 1) // blocks.block_size
    head_bytes = blocks.block_size * blocks.head_dim * blocks.element_bytes
    block_bytes = blocks.num_kv_heads * head_bytes
    first = item.head * head_bytes
    for block in range(last_block + 1):
        keys = blocks.keys + block_table[block] * block_bytes + first
        values = blocks.values + block_table[block] * block_bytes + first
        following = blocks.keys + block_table[min(block + 1, last_block)] * block_bytes + first
        # Lane i sees `num_keys + i // group` keys from the block's first on: all, some or none.
        lanes = Lanes(num_lanes, group, item.position - block * blocks.block_size + 1)
        for head in range(item.num_heads):
            at = keys + head * head_bytes
            ahead = at + head_bytes if head < item.num_heads - 1 else values
            score(lanes, head * distance, at, ahead, blocks, scratch)
        for head in range(item.num_heads):
            turn_to_weights(lanes, head * distance, scale, scratch)
        for head in range(item.num_heads):
            at = values + head * head_bytes
            ahead = at + head_bytes if head < item.num_heads - 1 else following
            add_values(lanes, head * distance, at, ahead, blocks, block > 0, scratch)
    for lane in range(item.num_heads * distance):
        row, query_head = _owner(item, lane, group)
        for d in range(q.shape[2]):
            out[row, query_head, d] = sums[lane, d] / softmax[lane, 1]


@callee
def _owner(item: _Item, lane: int, group: int) -> tuple[int, int]:
    """Row and query head of a lane. The last of an odd number of lanes is computed twice."""
    num_lanes = item.num_rows * group
    head, lane = lane // even(num_lanes), min(lane % even(num_lanes), num_lanes - 1)
    return item.row + lane // group, (item.head + head) * group + lane % group
