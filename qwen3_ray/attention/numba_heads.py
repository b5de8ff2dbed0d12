"""Lanes of one head against one block: scores, softmax weights, weighted values.

A lane is one query head of one row. The lanes that share a key/value head are the rows of tiles, a
block's keys or values the panels. Scratch holds them from a first lane on.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qwen3_ray.attention.numba_blocks import Blocks
from qwen3_ray.attention.numba_panels import multiply_panels
from qwen3_ray.attention.numba_softmax import SLOTS, exp2, maximum_of, weigh
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_tiles import LANES

_Floats = npt.NDArray[np.float32]
Scratch = tuple[_Floats, _Floats, _Floats, _Floats]
"""Each lane's query, scores or weights of a block, weighted values so far, (maximum, sum)."""

_TALLEST = 6  # lanes of a tile
_FLOAT_BYTES = 4


class Lanes(NamedTuple):
    """Lanes of one head against one block; the first sees `num_keys` keys, or none if it is < 1."""

    num_lanes: int
    group: int
    """Lanes of a row: query heads of the key/value head."""
    num_keys: int


@callee
def even(number: int) -> int:
    return (number + 1) // 2 * 2


@callee
def _height(lane: int, num_lanes: int) -> int:
    """Rows of the tile that begins at `lane`: 2, 4 or 6."""
    return min(_TALLEST, even(num_lanes - lane))


@callee
def _most_keys(lanes: Lanes, lane: int, block_size: int) -> int:
    """Keys of a block that the last lane of the tile which begins at `lane` sees."""
    last = min(lane + _TALLEST, lanes.num_lanes) - 1
    return min(block_size, lanes.num_keys + last // lanes.group)


@callee
def score(
    lanes: Lanes, first: int, keys: int, ahead: int, blocks: Blocks, scratch: Scratch
) -> None:
    """Scores of one head's lanes, the first of which is `first`, for the keys of a block.

    The first tile fetches what lies at `ahead`, as much as it reads, unless it sees no key. In a
    block that is not full, the last, that is not all that is read next, or more.
    """
    head_dim, block_size = blocks.head_dim, blocks.block_size
    query = scratch[0].ctypes.data + first * head_dim * _FLOAT_BYTES
    scores = scratch[1].ctypes.data + first * block_size * _FLOAT_BYTES
    for lane in range(0, lanes.num_lanes, _TALLEST):
        most = _most_keys(lanes, lane, block_size)
        if most > 0:
            multiply_panels(
                _height(lane, lanes.num_lanes), query + lane * head_dim * _FLOAT_BYTES, head_dim,
                keys, blocks.element_bytes, head_dim, head_dim,
                (most + SLOTS - 1) // SLOTS * (SLOTS // LANES),
                scores + lane * block_size * _FLOAT_BYTES, block_size, 0,
                ahead if lane == 0 else 0,
            )  # fmt: skip


@callee
def add_values(
    lanes: Lanes,
    first: int,
    values: int,
    ahead: int,
    blocks: Blocks,
    accumulate: bool,
    scratch: Scratch,
) -> None:
    """Add up a block's values by the weights of one head's lanes; see `score`."""
    head_dim, block_size = blocks.head_dim, blocks.block_size
    weight = scratch[1].ctypes.data + first * block_size * _FLOAT_BYTES
    total = scratch[2].ctypes.data + first * head_dim * _FLOAT_BYTES
    for lane in range(0, lanes.num_lanes, _TALLEST):
        most = _most_keys(lanes, lane, block_size)
        if most > 0:
            multiply_panels(
                _height(lane, lanes.num_lanes), weight + lane * block_size * _FLOAT_BYTES,
                block_size, values, blocks.element_bytes, block_size, most, head_dim // LANES,
                total + lane * head_dim * _FLOAT_BYTES, head_dim, 1 if accumulate else 0,
                ahead if lane == 0 else 0,
            )  # fmt: skip


@callee
def turn_to_weights(lanes: Lanes, first: int, scale: np.float32, scratch: Scratch) -> None:
    """Turn scores of one head's lanes into softmax weights, 0 for keys that a lane does not see.

    Weights are relative to the maximum of all blocks so far: what earlier blocks left fades when
    it rises. In two loops, so that the processor can overlap what each lane waits for.
    """
    _, scores, sums, softmax = scratch
    block_size = scores.shape[1]
    row_bytes = block_size * _FLOAT_BYTES
    for lane in range(even(lanes.num_lanes)):
        at = first + lane
        seen = lanes.num_keys + min(lane, lanes.num_lanes - 1) // lanes.group
        before = softmax[at, 0]
        maximum = maximum_of(scores.ctypes.data + at * row_bytes, block_size, seen, before)
        if maximum != before:
            fade = exp2((before - maximum) * scale)
            softmax[at, 0] = maximum
            softmax[at, 1] *= fade
            for d in range(sums.shape[1]):
                sums[at, d] *= fade
    for lane in range(even(lanes.num_lanes)):
        at = first + lane
        seen = lanes.num_keys + min(lane, lanes.num_lanes - 1) // lanes.group
        address = scores.ctypes.data + at * row_bytes
        softmax[at, 1] += weigh(address, block_size, seen, softmax[at, 0], scale)
