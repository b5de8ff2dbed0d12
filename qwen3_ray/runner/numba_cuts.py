"""What `top_k` and `top_p` keep, found without sorting.

The order of tokens is that of their float32 logits, the lowest id first among equals. A cut is a
logit: all above it and the first few at it are kept. It is found among few candidates, which are
told from the other tokens by the maxima of blocks, or by the weights in bins of one width, whose
order is that of the logits. Among the candidates a float's bits map to an unsigned key of the same
order, and three rounds of counting on the key's 10 + 11 + 11 bits find the cut.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.runner.numba_logits import BLOCK_SIZE, LOG2_E, exp2, gather, weigh
from qwen3_ray.runner.numba_scratch import NUM_BINS, Scratch

Floats = NDArray[np.floating]
UInt16s = NDArray[np.uint16]

_NUM_COUNTS = 2048  # 11 bits
_BINS_PER_UNIT = 16.0  # a unit halves the weight
_BANNED = np.float32(-np.inf)


@callee
def keep_top_k(
    logits: Floats, scratch: Scratch, largest: float, floor: float, top_k: int
) -> tuple[Floats, float]:
    """Logits and a floor, at or above which are the first `top_k` of those at least `floor`.

    As many blocks as `top_k` have a token at or above the `top_k`-th largest of their maxima.
    """
    before = 0.0
    if top_k < scratch.maxima.size:
        floor = max(floor, np.float64(top_k_cut(scratch.maxima, top_k)[0]))
        count = gather(logits, scratch.maxima, floor, scratch.ids, scratch.values)
    else:
        part = float(top_k)
        count, before, _ = _gather_bin(logits, scratch, largest, LOG2_E, floor, part, 0.0)
    top_k -= int(before)
    if top_k > count:
        return logits, floor
    cut, num_kept = top_k_cut(scratch.values[:count], top_k)
    return _ban_surplus(logits, scratch, count, cut, num_kept), np.float64(cut)


@callee
def keep_top_p(
    logits: Floats, scratch: Scratch, largest: float, scale: float, floor: float, top_p: float
) -> tuple[Floats, float]:
    """Logits and a floor, at or above which are the fewest first of those at least `floor` whose
    weights reach `top_p` of all of theirs.
    """
    count, before, target = _gather_bin(logits, scratch, largest, scale, floor, top_p, 1.0)
    values, weights = scratch.values[:count], scratch.weights[:count]
    weigh(values, largest, scale, weights)
    cut, num_kept = _top_p_cut(values, weights, target - before)
    return _ban_surplus(logits, scratch, count, cut, num_kept), np.float64(cut)


@callee
def _ban_surplus(
    logits: Floats, scratch: Scratch, count: int, cut: np.float32, num_kept: int
) -> Floats:
    """The logits, less all but the first `num_kept` of the candidates at `cut`."""
    edited = logits
    for i in range(count):
        if scratch.values[i] == cut:
            if num_kept == 0:
                edited = scratch.edited
                for j in range(logits.size):
                    edited[j] = logits[j]
            if num_kept <= 0:
                edited[scratch.ids[i]] = _BANNED
            num_kept -= 1
    return edited


@callee
def _gather_bin(
    logits: Floats,
    scratch: Scratch,
    largest: float,
    scale: float,
    floor: float,
    part: float,
    exponent: float,
) -> tuple[int, float, float]:
    """Gather the tokens among which the sum from the likeliest token down reaches its target.

    With an `exponent` of 1 sums are of weights, and the target is `part` of the total; with 0 they
    count tokens up to `part`. Logits below `floor` take no part.

    Returns:
        How many tokens were gathered, the sum of those before them, and the target.
    """
    masses, bins = scratch.masses, scratch.bins
    masses[:] = 0.0
    for block in range(scratch.maxima.size):
        if scratch.maxima[block] >= floor:
            start = block * BLOCK_SIZE
            values = logits[start : start + BLOCK_SIZE]
            some = bins[start : start + BLOCK_SIZE]
            _bin(values, largest, scale, floor, exponent, some, scratch.weights)
            for i in range(values.size):
                masses[some[i]] += scratch.weights[i]
    total = 0.0
    for i in range(NUM_BINS):
        total += masses[i]
    target = part * total if exponent > 0.0 else part
    chosen, before = _find(masses[:NUM_BINS], target)
    count = 0
    for block in range(scratch.maxima.size):
        if scratch.maxima[block] >= floor:
            start = block * BLOCK_SIZE
            values, some = logits[start : start + BLOCK_SIZE], bins[start : start + BLOCK_SIZE]
            for i in range(some.size):
                if some[i] == chosen:
                    scratch.ids[count], scratch.values[count] = start + i, values[i]
                    count += 1
    return count, before, target


@callee
def _bin(
    logits: Floats,
    largest: float,
    scale: float,
    floor: float,
    exponent: float,
    bins: UInt16s,
    weights: Floats,
) -> None:
    """Fill `bins` with 0 and up from the largest logit down, and `weights`, to the `exponent`."""
    for i in range(logits.size):
        logit = np.float64(logits[i])
        distance = (largest - logit) * scale
        bin_ = np.int32(min(distance * _BINS_PER_UNIT, NUM_BINS - 1.0))
        bins[i] = bin_ if logit >= floor else NUM_BINS
        weights[i] = exp2(-distance * exponent)


@callee
def _find(masses: Floats, target: float) -> tuple[int, float]:
    """The first index at which the running sum reaches `target`, and the sum before it.

    Should rounding keep it below, the last index with mass.
    """
    running, before, chosen = 0.0, 0.0, 0
    for i in range(masses.size):
        if masses[i] > 0.0:
            chosen, before = i, running
            running += masses[i]
            if running >= target:
                break
    return chosen, before


@callee
def _key(value: np.float32) -> np.int64:
    """Map a float32 to an int64 from 0 to 2**32 - 1 of the opposite order; -0.0 equals 0.0."""
    bits = np.int64(np.float32(value).view(np.uint32))
    return bits if bits >= 0x80000000 else 0x80000000 - bits


@callee
def _value(key: np.int64) -> np.float32:
    """The opposite of `_key`."""
    return np.uint32(key if key >= 0x80000000 else 0x80000000 - key).view(np.float32)


@callee
def top_k_cut(values: Floats, top_k: int) -> tuple[np.float32, int]:
    """The `top_k`-th value, from 1 to all, and how many equal to it are among the first `top_k`."""
    prefix, missing = np.int64(0), top_k
    counts = np.empty(_NUM_COUNTS, np.int64)
    for shift in (22, 11, 0):
        counts[:] = 0
        for i in range(values.size):
            key = _key(values[i])
            if key >> (shift + 11) == prefix:
                counts[(key >> shift) & (_NUM_COUNTS - 1)] += 1
        index = 0
        while counts[index] < missing:
            missing -= counts[index]
            index += 1
        prefix = (prefix << 11) | index
    return _value(prefix), missing


@callee
def _top_p_cut(values: Floats, weights: Floats, target: float) -> tuple[np.float32, int]:
    """Value at which the mass from the likeliest token down reaches `target`; tokens kept at it."""
    prefix, above = np.int64(0), 0.0
    masses = np.empty(_NUM_COUNTS, np.float64)
    for shift in (22, 11, 0):
        masses[:] = 0.0
        for i in range(values.size):
            key = _key(values[i])
            if key >> (shift + 11) == prefix:
                masses[(key >> shift) & (_NUM_COUNTS - 1)] += weights[i]
        index, before = _find(masses, target - above)
        above += before
        prefix = (prefix << 11) | index
    value = _value(prefix)
    for i in range(values.size):
        if values[i] == value:
            num_kept = min((target - above) / weights[i], np.float64(values.size))
            return value, max(1, math.ceil(num_kept))
    return value, 1
