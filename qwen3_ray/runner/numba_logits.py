"""Passes over one row of logits, in blocks of ids, that LLVM turns into vector instructions.

The largest logit of each block lets later passes leave blocks out. Sums are made within a block
first, then over the blocks in order, in float64: their bits depend on the row alone.

Vector loads need slices that are walked from 0: an index that might be negative forbids them.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_prefetch import prefetch

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]

BLOCK_SIZE = 256
_BYTES_AHEAD = 2048
"""How far ahead of what is scanned memory is asked for: two blocks."""
LOG2_E = math.log2(math.e)
LOWEST = float(np.finfo(np.float32).min)
"""A logit below it is minus infinity: banned."""

_SIGN_SHIFT = np.int32(31)
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)
_KEY_OF_INFINITY = np.int32(0x7F800000)
_KEY_OF_MINUS_INFINITY = np.int32(-0x7F800001)
_MAGIC = 6755399441055744.0  # 1.5 * 2**52: x + _MAGIC holds round(x) in its low bits
_MANTISSA_BITS = np.int64(52)
_EXP2_MIN = -1000.0
# (2**f - 1) / f at the Chebyshev nodes of [-0.5, 0.5]; 2**f is off by less than 1e-15 then.
_C1, _C2 = 0.6931471805599466, 0.24022650695910994
_C3, _C4 = 0.05550410866463086, 0.009618129107257225
_C5, _C6 = 0.0013333558202951493, 0.0001540353083574076
_C7, _C8 = 1.525267212313449e-05, 1.3215268571022757e-06
_C9, _C10 = 1.020600164425329e-07, 7.099248176922e-09
# The same for float32: off by less than 3e-7.
_F1, _F2, _F3 = np.float32(0.69314719), np.float32(0.24022349), np.float32(0.05550357)
_F4, _F5 = np.float32(0.00966637), np.float32(0.00133909)
_F_ONE = np.float32(1.0)
_F_MAGIC = np.float32(12582912.0)  # 1.5 * 2**23
_F_MANTISSA_BITS = np.int32(23)
_F_EXP2_MIN = np.float32(-126.0)
_F_MAX_SCALE = 1e30  # times any distance of two float32s it is no NaN


@callee
def num_blocks(size: int) -> int:
    """Blocks of a row of `size` logits."""
    return (size + BLOCK_SIZE - 1) // BLOCK_SIZE


@callee
def scan(logits: Floats, maxima: Floats, scale: float, sums: Floats) -> bool:
    """Fill `maxima`, [num_blocks], with each block's largest; tell if all logits are finite.

    With a `scale` above 0 fill `sums`, [num_blocks], too: each block's sum of float32 weights,
    which are 2**((logit - largest of the block) * scale). The block is in the cache then.
    """
    bits = logits.view(np.int32)
    keys = maxima.view(np.int32)
    narrow_scale = np.float32(min(scale, _F_MAX_SCALE))
    ahead = logits.ctypes.data + _BYTES_AHEAD
    highest, lowest = _KEY_OF_MINUS_INFINITY, _KEY_OF_INFINITY
    for block in range(maxima.size):
        start, stop = block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE
        prefetch(ahead + start * logits.itemsize, BLOCK_SIZE * logits.itemsize)
        high, low = _extremes(bits[start:stop])
        keys[block] = high ^ ((high >> _SIGN_SHIFT) & _ALL_BUT_SIGN)
        highest, lowest = max(highest, high), min(lowest, low)
        if scale > 0.0:
            sums[block] = _sum_narrow(logits[start:stop], maxima[block], narrow_scale)
    return bool(highest < _KEY_OF_INFINITY and lowest > _KEY_OF_MINUS_INFINITY)


@njit(fastmath={"reassoc", "nsz"})
def _sum_narrow(logits: Floats, largest: np.float32, scale: np.float32) -> np.float32:
    total = np.float32(0.0)
    for i in range(logits.size):
        total += _narrow_exp2((logits[i] - largest) * scale)
    return total


@njit(fastmath={"contract"})
def _narrow_exp2(x: np.float32) -> np.float32:
    """`exp2` in float32; never less than 2**-126, also for NaN."""
    clipped = x if x > _F_EXP2_MIN else _F_EXP2_MIN
    shifted = np.float32(clipped + _F_MAGIC)
    f = clipped - (shifted - _F_MAGIC)
    power = _F_ONE + f * (_F1 + f * (_F2 + f * (_F3 + f * (_F4 + f * _F5))))
    exponent = shifted.view(np.int32) << _F_MANTISSA_BITS
    bits = np.int32(np.float32(power).view(np.int32) + exponent)
    return bits.view(np.float32)


@callee
def _extremes(bits: Int32s) -> tuple[np.int32, np.int32]:
    """Largest and smallest of the integers that a float's bits map to in the same order.

    NaNs are beyond the infinities. The map is its own inverse.
    """
    high, low = np.int32(-0x80000000), _ALL_BUT_SIGN
    for i in range(bits.size):
        key = np.int32(bits[i] ^ ((bits[i] >> _SIGN_SHIFT) & _ALL_BUT_SIGN))
        high, low = max(high, key), min(low, key)
    return high, low


@callee
def first_of(logits: Floats, maxima: Floats, value: np.float32) -> int:
    """The first id whose logit is `value`, the largest of all."""
    block = 0
    while maxima[block] != value:
        block += 1
    i = block * BLOCK_SIZE
    while logits[i] != value:
        i += 1
    return i


@callee
def gather(logits: Floats, maxima: Floats, floor: float, ids: Int32s, values: Floats) -> int:
    """Write the ids and logits of all at least `floor`, in id order; returns how many."""
    count = 0
    for block in range(maxima.size):
        if maxima[block] >= floor:
            start = block * BLOCK_SIZE
            some = logits[start : start + BLOCK_SIZE]
            for i in range(some.size):
                if some[i] >= floor:
                    ids[count], values[count] = start + i, some[i]
                    count += 1
    return count


@callee
def count_before(logits: Floats, token_id: int) -> np.int32:
    """How many tokens are likelier than `token_id`, or as likely with a lower id."""
    value, count = logits[token_id], np.int32(0)
    for i in range(logits.size):
        is_before = logits[i] > value or (logits[i] == value and i < token_id)
        count += np.int32(is_before)
    return count


@callee
def sum_weights(
    logits: Floats, maxima: Floats, largest: float, scale: float, floor: float, sums: Floats
) -> float:
    """Fill `sums`, [num_blocks], with each block's weights of logits >= `floor`; their total."""
    total = 0.0
    for block in range(maxima.size):
        sums[block] = 0.0
        if maxima[block] >= floor:
            values = logits[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
            sums[block] = _sum_block(values, largest, scale, floor)
        total += sums[block]
    return total


@callee
def level_sums(maxima: Floats, largest: float, scale: float, sums: Floats) -> float:
    """Make `sums`, which `scan` filled, relative to the `largest` of all logits; their total."""
    total = 0.0
    for block in range(maxima.size):
        sums[block] *= exp2((np.float64(maxima[block]) - largest) * scale)
        total += sums[block]
    return total


@njit(fastmath={"reassoc", "contract", "nsz"})
def _sum_block(logits: Floats, largest: float, scale: float, floor: float) -> float:
    total = 0.0
    for i in range(logits.size):
        logit = np.float64(logits[i])
        weight = exp2((logit - largest) * scale)
        total += weight if logit >= floor else 0.0
    return total


@callee
def weigh(values: Floats, largest: float, scale: float, weights: Floats) -> None:
    """Fill `weights` with 2**((value - largest) * scale)."""
    for i in range(values.size):
        weights[i] = exp2((np.float64(values[i]) - largest) * scale)


@njit(fastmath={"contract"})
def exp2(x: float) -> float:
    """2**x for x <= 0, exact at 0, and 0 below 2**-1000; unlike libm's it vectorises."""
    clipped = max(x, _EXP2_MIN)
    shifted = clipped + _MAGIC
    f = clipped - (shifted - _MAGIC)
    power = _C6 + f * (_C7 + f * (_C8 + f * (_C9 + f * _C10)))
    power = 1.0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * power)))))
    exponent = np.float64(shifted).view(np.int64) << _MANTISSA_BITS
    bits = np.int64(np.float64(power).view(np.int64) + exponent)
    return bits.view(np.float64) if x > _EXP2_MIN else 0.0
