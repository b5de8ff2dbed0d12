"""The small steps between the products, fused, on CPU: one pass per row.

No row sees another, and each row takes the same path whatever its index: torch's own vectorised
operators have another path for the last elements of a thread's share. Each kernel has a plain
torch oracle of the same name in `norm`, `rotary`, `activation` and `moe`, whose `route` is two
kernels here. All arrays are contiguous; a call computes the rows of `part` out of `num_parts` and
releases the GIL.

All callees of the cached kernels live in this file: Numba's cache notices no edit elsewhere.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]

_FAST = {"reassoc", "contract", "nsz"}
_ZERO, _ONE = np.float32(0), np.float32(1)
_LOG2_E = np.float32(math.log2(math.e))
_TAKEN = np.float32(-1)  # no probability
_MAGIC = np.float32(12582912)  # 1.5 * 2**23: x + _MAGIC holds round(x) in its low bits
_MANTISSA_BITS = np.int32(23)
_EXP2_MIN, _EXP2_MAX = np.float32(-126), np.float32(126)
_C1, _C2 = np.float32(6.931471805599453e-1), np.float32(2.402265069591007e-1)
_C3, _C4 = np.float32(5.550410866482158e-2), np.float32(9.618129107628477e-3)
_C5, _C6 = np.float32(1.333355814642844e-3), np.float32(1.540353039338161e-4)


@njit(cache=True, nogil=True, error_model="numpy")
def add_rms_norm(
    part: int,
    num_parts: int,
    x: _Floats,
    residual: _Floats,
    weight: _Floats,
    eps: np.float32,
    out: _Floats,
) -> None:
    """`residual` += `x`; `out` = norm of the sum; all [num_rows, size]."""
    start, stop = _rows(x.shape[0], part, num_parts)
    for row in range(start, stop):
        add_and_normalise(x[row], residual[row], weight, eps, out[row])


@njit(cache=True, nogil=True, error_model="numpy")
def qk_norm_rope(
    part: int,
    num_parts: int,
    qkv: _Floats,
    positions: _Ints,
    q_weight: _Floats,
    k_weight: _Floats,
    eps: np.float32,
    cos_sin: _Floats,
    q: _Floats,
    k: _Floats,
    v: _Floats,
) -> None:
    """Fill `q`, `k`, `v`, each [num_rows, heads, head_dim], from `qkv` [num_rows, all heads].

    What follows the heads in a row of `qkv` is not read.
    """
    num_heads, num_kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
    start, stop = _rows(qkv.shape[0], part, num_parts)
    for row in range(start, stop):
        # Slices: a reshape takes seconds to compile.
        queries, angles = qkv[row], cos_sin[positions[row]]
        keys = queries[num_heads * head_dim :]
        values = keys[num_kv_heads * head_dim :]
        for head in range(num_heads):
            _normalise(
                queries[head * head_dim : (head + 1) * head_dim], q_weight, eps, q[row, head]
            )
            _rotate(q[row, head], angles)
        for head in range(num_kv_heads):
            _normalise(keys[head * head_dim : (head + 1) * head_dim], k_weight, eps, k[row, head])
            _rotate(k[row, head], angles)
            for i in range(head_dim):
                v[row, head, i] = values[head * head_dim + i]


@njit(cache=True, nogil=True, error_model="numpy")
def silu_and_mul(part: int, num_parts: int, gate_up: _Floats, out: _Floats) -> None:
    """`gate_up` [num_rows, 2 * size], gate before up -> `out` [num_rows, size]."""
    size = out.shape[1]
    start, stop = _rows(out.shape[0], part, num_parts)
    for row in range(start, stop):
        gate_and_multiply(gate_up[row], size, out[row])


@njit(cache=True, nogil=True, error_model="numpy")
def choose_experts(
    part: int,
    num_parts: int,
    logits: _Floats,
    normalise: bool,
    experts: _Ints,
    weights: _Floats,
) -> None:
    """First step of `moe.route`: fill `experts` and `weights`, each [num_rows, top_k].

    From `logits`, [num_rows, num_experts]; the likeliest first. One NaN or positive infinity makes
    all weights of its row NaN.
    """
    probabilities = np.empty(logits.shape[1], np.float32)
    start, stop = _rows(logits.shape[0], part, num_parts)
    for row in range(start, stop):
        _softmax(logits[row], probabilities)
        total = _take_largest(probabilities, experts[row], weights[row])
        if normalise:
            weights[row] /= total


@njit(cache=True, nogil=True, error_model="numpy")
def group_rows(
    experts: _Ints,
    weights: _Floats,
    first_expert: int,
    starts: _Ints,
    rows: _Ints,
    row_weights: _Floats,
) -> None:
    """Second step of `moe.route`: fill `starts`, `rows` and `row_weights` of its `ExpertRows`.

    From what `choose_experts` gave. A counting sort; runs in one thread.
    """
    num_local = starts.shape[0] - 1
    local = experts - np.int32(first_expert)
    starts[:] = 0
    for chosen in local.flat:
        if 0 <= chosen < num_local:
            starts[chosen + 1] += 1
    for index in range(num_local):
        starts[index + 1] += starts[index]
    nexts = starts[:-1].copy()
    for row in range(local.shape[0]):
        for choice in range(local.shape[1]):
            chosen = local[row, choice]
            if 0 <= chosen < num_local:
                rows[nexts[chosen]] = row
                row_weights[nexts[chosen]] = weights[row, choice]
                nexts[chosen] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def add_weighted(
    part: int, num_parts: int, out: _Floats, x: _Floats, rows: _Ints, weights: _Floats
) -> None:
    """`out[rows[i]] += weights[i] * x[i]`, both [any number of rows, size]."""
    start, stop = _rows(rows.shape[0], part, num_parts)
    for index in range(start, stop):
        total, addend, weight = out[rows[index]], x[index], weights[index]
        for i in range(total.shape[0]):
            total[i] += weight * addend[i]


@njit(cache=True)
def _rows(num_rows: int, part: int, num_parts: int) -> tuple[int, int]:
    return num_rows * part // num_parts, num_rows * (part + 1) // num_parts


@callee
def add_and_normalise(
    x: _Floats, residual: _Floats, weight: _Floats, eps: np.float32, out: _Floats
) -> None:
    """One row of `add_rms_norm`; `x` may be longer, and `out` strided."""
    for i in range(residual.shape[0]):
        residual[i] += x[i]
    _normalise(residual, weight, eps, out)


@callee
def gate_and_multiply(gate_up: _Floats, size: int, out: _Floats) -> None:
    """One row of `silu_and_mul`; `gate_up` may be longer, and `out` strided."""
    for i in range(size):
        gate = gate_up[i]
        out[i] = gate / (_ONE + _exp2(-gate * _LOG2_E)) * gate_up[size + i]


@callee
def _normalise(x: _Floats, weight: _Floats, eps: np.float32, out: _Floats) -> None:
    factor = _ONE / np.sqrt(_sum_of_squares(x) / np.float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        out[i] = weight[i] * (x[i] * factor)


@njit(cache=True, fastmath=_FAST)
def _sum_of_squares(x: _Floats) -> np.float32:
    total = _ZERO
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return total


@njit(cache=True, error_model="numpy")
def _softmax(logits: _Floats, out: _Floats) -> None:
    """All NaN if a logit is NaN or positive infinity."""
    largest, total = logits[0], _ZERO
    for logit in logits:
        largest = max(largest, logit)
    for i in range(logits.shape[0]):
        out[i] = _exp2((logits[i] - largest) * _LOG2_E)
        total += out[i]
    for i in range(logits.shape[0]):
        out[i] /= total


@njit(cache=True)
def _take_largest(probabilities: _Floats, experts: _Ints, weights: _Floats) -> np.float32:
    """Fill `experts` and `weights` with the largest, the lowest index first among equals.

    Those taken are set to -1; returns their sum.
    """
    total = _ZERO
    for choice in range(experts.shape[0]):
        best = -1
        for i in range(probabilities.shape[0]):
            # NaN is not -1 and not larger than anything: a row of NaN takes the first experts.
            if probabilities[i] != _TAKEN and (best < 0 or probabilities[i] > probabilities[best]):
                best = i
        experts[choice], weights[choice] = best, probabilities[best]
        total += probabilities[best]
        probabilities[best] = _TAKEN
    return total


@njit(cache=True)
def _rotate(x: _Floats, angles: _Floats) -> None:
    """Rotate the pairs (i, i + half) of one head in place; `angles` is cosines, then sines."""
    half = x.shape[0] // 2
    for i in range(half):
        first, second = x[i], x[half + i]
        cos, sin = angles[i], angles[half + i]
        x[i] = first * cos - second * sin
        x[half + i] = second * cos + first * sin


@njit(cache=True, fastmath={"contract"})
def _exp2(x: np.float32) -> np.float32:
    """2**x, clipped to normal numbers; unlike libm's it vectorises."""
    clipped = min(max(np.float32(x), _EXP2_MIN), _EXP2_MAX)
    shifted = np.float32(clipped + _MAGIC)
    f = clipped - (shifted - _MAGIC)
    power = _ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    exponent = shifted.view(np.int32) << _MANTISSA_BITS
    bits = np.int32(np.float32(power).view(np.int32) + exponent)
    return bits.view(np.float32)
