"""Paged attention on CPU by tiles: one kernel for prefill, chunks and decode alike.

A row's bits depend on its own query and the cached keys and values alone: blocks are anchored at
position 0 and taken in order by a running softmax, and `numba_tiles` adds up every product in one
order whatever stands beside it. Threads, tiles and sequences only decide who computes a row.

A lane is one query head of one row. The lanes of an item share a key/value head: they are the rows
of its tiles, a block's keys or values the panels. `q` and `out` are [num_rows, num_heads,
head_dim], caches as `base.KVCache` has them on CPU, of floats or of halves.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qwen3_ray.attention.numba_panels import HALF_BYTES, multiply_panels
from qwen3_ray.attention.numba_softmax import LOWEST, SLOTS, exp2, maximum_of, weigh
from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_memory import store_float, store_half
from qwen3_ray.cpu.numba_prefetch import prefetch
from qwen3_ray.cpu.numba_sync import atomic_add
from qwen3_ray.cpu.numba_tiles import LANES

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Item = tuple[int, int, int, int]
"""(first row, rows, first row's position, key/value head) of one sequence."""
_Scratch = tuple[_Floats, _Floats, _Floats, _Floats]
"""Each lane's query, scores or weights of a block, weighted values so far, (maximum, sum)."""

_LOG2_E = math.log2(math.e)
_ITEM_LANES = 96  # read the cache once; what they hold stays in the second cache
_TALLEST = 6
_FLOAT_BYTES = 4
_ZERO = np.float32(0)


class Blocks(NamedTuple):
    """One layer's cache for kernels. Whoever made it keeps the memory alive."""

    keys: int
    """Address of `KVCache.key`."""
    values: int
    """Address of `KVCache.value`."""
    num_kv_heads: int
    block_size: int
    """A multiple of 16; so is `head_dim`."""
    head_dim: int
    element_bytes: int
    """4 for floats, 2 for halves."""


def score_scale(head_dim: int) -> np.float32:
    """What makes a product of query and key the power of two that it weighs."""
    return np.float32(head_dim**-0.5 * _LOG2_E)


@njit(cache=True, nogil=True)
def write_kv(
    part: int, num_parts: int, k: _Floats, v: _Floats, blocks: Blocks, slot_mapping: _Ints
) -> None:
    """Store this part's share of the rows `k` and `v`, [num_rows, num_kv_heads, head_dim].

    All parts must have returned before any thread calls `attend` on these blocks.
    """
    block_size, head_dim, size = blocks.block_size, blocks.head_dim, blocks.element_bytes
    first, last = k.shape[0] * part // num_parts, k.shape[0] * (part + 1) // num_parts
    for head in range(k.shape[1]):  # outside: rows that follow each other share cache lines
        for row in range(first, last):
            block, offset = slot_mapping[row] // block_size, slot_mapping[row] % block_size
            begin = _head_of(block, head, blocks.num_kv_heads) * block_size * head_dim
            key = begin + offset // LANES * LANES * head_dim + offset % LANES
            for d in range(head_dim):
                _store(blocks.keys + (key + d * LANES) * size, size, k[row, head, d])
            value = begin + offset * LANES
            for d in range(head_dim):
                place = value + d // LANES * LANES * block_size + d % LANES
                _store(blocks.values + place * size, size, v[row, head, d])


@callee
def _store(address: int, element_bytes: int, value: np.float32) -> None:
    if element_bytes == HALF_BYTES:
        store_half(address, value)
    else:
        store_float(address, value)


# A caller's fastmath would be taken over if this did not refuse it.
@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def attend(
    part: int,  # noqa: ARG001 - as of all kernels
    num_parts: int,  # noqa: ARG001
    counter: int,
    q: _Floats,
    blocks: Blocks,
    query_start_loc: _Ints,
    seq_lens: _Ints,
    block_tables: _Ints,
    scale: np.float32,
    out: _Floats,
) -> None:
    """Take items, sequence x some rows x key/value head, until none is left.

    Before any thread comes here, all must be done with `write_kv` and with what made `q`; `out` is
    complete when all have returned.

    Args:
        part: not used, as `num_parts`: work goes to who asks.
        num_parts: see `part`.
        counter: address of an int64, 0 when the first thread comes.
        q: contiguous in head_dim.
        blocks: of the layer.
        query_start_loc: as the three that follow, see `AttentionMetadata`.
        seq_lens: of all sequences.
        block_tables: entries beyond a sequence's length are not read.
        scale: `score_scale(head_dim)`.
        out: need not be initialised.
    """
    group = q.shape[1] // blocks.num_kv_heads
    item_rows = max(1, _ITEM_LANES // group)
    num_lanes = _even(min(item_rows, q.shape[0]) * group)
    scratch = (
        np.empty((num_lanes, blocks.head_dim), np.float32),
        np.empty((num_lanes, blocks.block_size), np.float32),
        np.empty((num_lanes, blocks.head_dim), np.float32),
        np.empty((num_lanes, 2), np.float32),
    )
    seq, first_item, num_items = -1, 0, 0
    while True:
        item = atomic_add(counter, 1)
        while item >= first_item + num_items:
            seq += 1
            if seq == seq_lens.shape[0]:
                return
            first_item += num_items
            num_rows = query_start_loc[seq + 1] - query_start_loc[seq]
            num_items = (num_rows + item_rows - 1) // item_rows * blocks.num_kv_heads
        # The last rows first: they have the most keys, and short items fill up the end.
        index = first_item + num_items - 1 - item
        row = query_start_loc[seq] + index // blocks.num_kv_heads * item_rows
        stop = query_start_loc[seq + 1]
        position = seq_lens[seq] - stop + row
        where = (row, min(item_rows, stop - row), position, index % blocks.num_kv_heads)
        _attend_item(where, q, blocks, block_tables[seq], scale, scratch, out)


@callee
def _attend_item(
    item: _Item,
    q: _Floats,
    blocks: Blocks,
    block_table: _Ints,
    scale: np.float32,
    scratch: _Scratch,
    out: _Floats,
) -> None:
    row, num_rows, position, kv_head = item
    queries, scores, sums, softmax = scratch
    num_kv_heads, head_dim, block_size = blocks.num_kv_heads, blocks.head_dim, blocks.block_size
    group = q.shape[1] // num_kv_heads
    num_lanes = num_rows * group
    for lane in range(_even(num_lanes)):
        real = min(lane, num_lanes - 1)  # the last of an odd number is computed twice
        for d in range(head_dim):  # to assign slices takes Numba seconds to compile
            queries[lane, d] = q[row + real // group, kv_head * group + real % group, d]
        softmax[lane, 0], softmax[lane, 1] = LOWEST, _ZERO
    query, score, total = queries.ctypes.data, scores.ctypes.data, sums.ctypes.data
    block_bytes = block_size * head_dim * blocks.element_bytes  # of one head, keys or values
    num_tiles = (num_lanes + _TALLEST - 1) // _TALLEST
    # Each tile asks for some of the next block. One alone waits for memory all the time anyway.
    ahead_bytes = (block_bytes + num_tiles - 1) // num_tiles if num_tiles > 1 else 0
    last_block = (position + num_rows - 1) // block_size
    for block in range(last_block + 1):
        offset = _head_of(block_table[block], kv_head, num_kv_heads) * block_bytes
        following = block_table[min(block + 1, last_block)]
        ahead = _head_of(following, kv_head, num_kv_heads) * block_bytes - offset
        keys, values = blocks.keys + offset, blocks.values + offset
        # Lane i sees `num_keys + i // group` keys from the block's first on: all, some or none.
        num_keys = position - block * block_size + 1
        for lane in range(0, num_lanes, _TALLEST):
            prefetch(keys + ahead + lane // _TALLEST * ahead_bytes, ahead_bytes)
            most = _most_keys(lane, num_lanes, group, num_keys, block_size)
            if most > 0:
                multiply_panels(
                    _height(lane, num_lanes), query + lane * head_dim * _FLOAT_BYTES, head_dim,
                    keys, blocks.element_bytes, head_dim, head_dim,
                    (most + SLOTS - 1) // SLOTS * (SLOTS // LANES),
                    score + lane * block_size * _FLOAT_BYTES, block_size, 0,
                )  # fmt: skip
        _weigh_lanes(num_lanes, group, num_keys, scale, scores, sums, softmax)
        for lane in range(0, num_lanes, _TALLEST):
            prefetch(values + ahead + lane // _TALLEST * ahead_bytes, ahead_bytes)
            most = _most_keys(lane, num_lanes, group, num_keys, block_size)
            if most > 0:
                multiply_panels(
                    _height(lane, num_lanes), score + lane * block_size * _FLOAT_BYTES, block_size,
                    values, blocks.element_bytes, block_size, most, head_dim // LANES,
                    total + lane * head_dim * _FLOAT_BYTES, head_dim, min(block, 1),
                )  # fmt: skip
    for lane in range(num_lanes):
        for d in range(head_dim):
            mean = sums[lane, d] / softmax[lane, 1]
            out[row + lane // group, kv_head * group + lane % group, d] = mean


@callee
def _head_of(block: int, kv_head: int, num_kv_heads: int) -> int:
    """Index of one head of one block among all of the cache."""
    return block * num_kv_heads + kv_head


@callee
def _even(number: int) -> int:
    return (number + 1) // 2 * 2


@callee
def _height(lane: int, num_lanes: int) -> int:
    """Rows of the tile that begins at `lane`: 2, 4 or 6."""
    return min(_TALLEST, _even(num_lanes - lane))


@callee
def _most_keys(lane: int, num_lanes: int, group: int, num_keys: int, block_size: int) -> int:
    """Keys of a block that the last lane of the tile which begins at `lane` sees."""
    last = min(lane + _TALLEST, num_lanes) - 1
    return min(block_size, num_keys + last // group)


@callee
def _weigh_lanes(
    num_lanes: int,
    group: int,
    num_keys: int,
    scale: np.float32,
    scores: _Floats,
    sums: _Floats,
    softmax: _Floats,
) -> None:
    """Turn scores into softmax weights, 0 for keys that a lane does not see.

    Weights are relative to the maximum of all blocks so far: what earlier blocks left fades when
    it rises. In two loops, so that the processor can overlap what each lane waits for.
    """
    block_size = scores.shape[1]
    row_bytes = block_size * _FLOAT_BYTES
    for lane in range(_even(num_lanes)):
        seen = num_keys + min(lane, num_lanes - 1) // group
        before = softmax[lane, 0]
        maximum = maximum_of(scores.ctypes.data + lane * row_bytes, block_size, seen, before)
        if maximum != before:
            fade = exp2((before - maximum) * scale)
            softmax[lane, 0] = maximum
            softmax[lane, 1] *= fade
            for d in range(sums.shape[1]):
                sums[lane, d] *= fade
    for lane in range(_even(num_lanes)):
        seen = num_keys + min(lane, num_lanes - 1) // group
        address = scores.ctypes.data + lane * row_bytes
        softmax[lane, 1] += weigh(address, block_size, seen, softmax[lane, 0], scale)
