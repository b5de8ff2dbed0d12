"""Sampling on CPU: one Numba pass per row, shared out to threads; no sort, no row sees another.

The order of tokens is that of their raw fp32 logits, the lowest id first among equals. A float's
bits map to an unsigned key of the same order, so the token at which `top_k` or `top_p` cuts is
found by three rounds of counting on the key's 11 + 11 + 10 bits. Weights and sums are fp64.
Every callee of the cached kernel lives in this file: Numba's cache notices no other edits.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.attention.compiler import njit
from qwen3_ray.runner import philox
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR, Rows

Floats = NDArray[np.floating]
Bits = NDArray[np.uint32]
Ints = NDArray[np.int64]

_NUM_BINS = 2048
_M0 = np.uint64(philox.MULTIPLIER_0)
_M1 = np.uint64(philox.MULTIPLIER_1)
_W0 = np.uint64(philox.WEYL_0)
_W1 = np.uint64(philox.WEYL_1)
_NUM_ROUNDS = philox.NUM_ROUNDS
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_11 = np.uint64(11)
_ZERO = np.uint64(0)


@njit(cache=True)
def uniform(seed: int, position: int) -> float:
    """`philox.uniform` for an int64 seed."""
    key = np.uint64(seed)
    k0, k1 = key & _LOW, key >> _32
    c0, c1, c2, c3 = np.uint64(position), _ZERO, _ZERO, _ZERO
    for _ in range(_NUM_ROUNDS):
        product_0 = _M0 * c0
        product_1 = _M1 * c2
        c0, c1 = (product_1 >> _32) ^ c1 ^ k0, product_1 & _LOW
        c2, c3 = (product_0 >> _32) ^ c3 ^ k1, product_0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.float64(((c0 << _32) | c1) >> _11) * 2.0**-53


@njit(cache=True)
def _key(bits: np.uint32) -> np.int64:
    """Map a float32's bits to an int64 from 0 to 2**32 - 1 of the same order; -0.0 equals 0.0."""
    value = np.int64(bits)
    return value + 0x80000000 if value < 0x80000000 else 0x100000000 - value


@njit(cache=True)
def _top_k_cut(bits: Bits, top_k: int) -> tuple[int, int]:
    """Key of the `top_k`-th token in order, and how many tokens with that key are among them."""
    prefix, missing = 0, top_k
    for shift, width in ((22, 11), (11, 11), (0, 11)):
        counts = np.zeros(_NUM_BINS, np.int64)
        for i in range(bits.size):
            key = _key(bits[i])
            if key >> (shift + width) == prefix:
                counts[(key >> shift) & (_NUM_BINS - 1)] += 1
        index = _NUM_BINS - 1
        while counts[index] < missing:
            missing -= counts[index]
            index -= 1
        prefix = (prefix << width) | index
    return prefix, missing


@njit(cache=True)
def _top_p_cut(bits: Bits, weights: Floats, target: float) -> tuple[int, int]:
    """Key at which the mass from the likeliest token down reaches `target`; tokens kept there."""
    prefix, above = 0, 0.0
    for shift, width in ((22, 11), (11, 11), (0, 11)):
        masses = np.zeros(_NUM_BINS, np.float64)
        for i in range(bits.size):
            if weights[i] > 0.0:
                key = _key(bits[i])
                if key >> (shift + width) == prefix:
                    masses[(key >> shift) & (_NUM_BINS - 1)] += weights[i]
        cut = -1  # the last bin with mass, should rounding keep the sum below the target
        before = above
        for index in range(_NUM_BINS - 1, -1, -1):
            if masses[index] > 0.0:
                cut, before = index, above
                above += masses[index]
                if above >= target:
                    break
        above = before
        prefix = (prefix << width) | cut
    for i in range(bits.size):
        if weights[i] > 0.0 and _key(bits[i]) == prefix:
            return prefix, max(1, math.ceil((target - above) / weights[i]))
    return prefix, 1


@njit(cache=True)
def _drop_below(bits: Bits, weights: Floats, cut: int, num_kept: int) -> None:
    """Zero the weights below key `cut`, and those at it but for the first `num_kept`."""
    for i in range(bits.size):
        if weights[i] > 0.0:
            key = _key(bits[i])
            if key == cut:
                num_kept -= 1
            if key < cut or (key == cut and num_kept < 0):
                weights[i] = 0.0


@njit(cache=True)
def _weigh(logits: Floats, bits: Bits, largest: float, temperature: float, top_k: int) -> Floats:
    """Weights exp((logit - largest) / temperature), fp64, 0 for all but the `top_k` first."""
    cut, num_kept = 0, logits.size
    if 0 < top_k < logits.size:
        cut, num_kept = _top_k_cut(bits, top_k)
    weights = np.zeros(logits.size, np.float64)
    for i in range(logits.size):
        key = _key(bits[i])
        if key == cut:
            num_kept -= 1
        if key > cut or (key == cut and num_kept >= 0):
            weights[i] = math.exp((np.float64(logits[i]) - largest) / temperature)
    return weights


@njit(cache=True)
def _invert(weights: Floats, share: float) -> int:
    """First id, in id order, at which the running sum exceeds `share` of the total."""
    total = 0.0
    for i in range(weights.size):
        total += weights[i]
    target = share * total
    running, last = 0.0, 0
    for i in range(weights.size):
        if weights[i] > 0.0:
            running += weights[i]
            last = i
            if running > target:
                return i
    return last


@njit(cache=True)
def _sample_row(logits: Floats, row: np.void) -> int:
    largest = logits[0]
    chosen = 0
    for i in range(logits.size):
        if not math.isfinite(logits[i]):
            return NUMERICAL_ERROR
        if logits[i] > largest:
            largest = logits[i]
            chosen = i
    if row["temperature"] == 0.0:
        return chosen
    bits = logits.view(np.uint32)
    weights = _weigh(logits, bits, np.float64(largest), row["temperature"], row["top_k"])
    if row["top_p"] < 1.0:
        total = 0.0
        for i in range(weights.size):
            total += weights[i]
        cut, num_kept = _top_p_cut(bits, weights, row["top_p"] * total)
        _drop_below(bits, weights, cut, num_kept)
    return _invert(weights, uniform(row["seed"], row["position"]))


@njit(cache=True, nogil=True)
def sample_rows(
    part: int, num_parts: int, logits: Floats, num_valid_token_ids: int, rows: Rows, ids: Ints
) -> None:
    """Sample one id for each row of part `part` of `num_parts`.

    Args:
        part: from 0 on; for `ThreadPool.run`.
        num_parts: parts in all, one a thread.
        logits: [at least num_rows, vocab_size], float32, contiguous.
        num_valid_token_ids: ids from here on are never looked at.
        rows: [num_rows] of `sampling_rows.ROW`.
        ids: [num_rows], int64, written; `NUMERICAL_ERROR` where a logit is not finite.
    """
    for row in range(part, rows.size, num_parts):
        ids[row] = _sample_row(logits[row, :num_valid_token_ids], rows[row])
