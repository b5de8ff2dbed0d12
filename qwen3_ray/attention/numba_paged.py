"""Paged attention on CPU: one Numba kernel for prefill, chunks and decode alike.

A row's bits depend on its own query and the cached keys and values alone: blocks are anchored at
position 0 and taken in order by a running softmax, and every product is two query heads by four
keys whatever surrounds it. Threads, tiles and sequences only decide who computes a row.

All callees of the cached kernels live in this file: Numba's cache notices no edit elsewhere.
In the kernels `q` and `out` are [num_rows, num_heads, head_dim], caches as in `base.KVCache`.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.thread_pool import ThreadPool

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]

_TILE_ROWS = 16
_LOG2_E = math.log2(math.e)
_FAST = {"reassoc", "contract", "nsz", "arcp"}  # not ninf: masked scores are minus infinity
_ZERO = np.float32(0)
_LOWEST = np.float32(-3e38)
_MAGIC = np.float32(12582912)  # 1.5 * 2**23: x + _MAGIC holds round(x) in its low bits
_MANTISSA_BITS = np.int32(23)
_EXP2_MIN = np.float32(-126)
_C1, _C2, _C3 = (
    np.float32(6.931471805599453e-1),
    np.float32(2.402265069591007e-1),
    np.float32(5.550410866482158e-2),
)
_C4, _C5, _C6 = (
    np.float32(9.618129107628477e-3),
    np.float32(1.333355814642844e-3),
    np.float32(1.540353039338161e-4),
)
_ONE = np.float32(1)


class NumbaPagedAttention:
    """Row-invariant paged attention over float32 caches."""

    row_invariant = True

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """See `AttentionBackend`; `k` and `v` are contiguous."""
        self._pool.run(
            _write_kv,
            k.numel(),
            k.numpy(),
            v.numpy(),
            cache.key.numpy(),
            cache.value.numpy(),
            metadata.slot_mapping.numpy(),
            metadata.num_tokens,
        )

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """See `AttentionBackend`; `q` is contiguous."""
        out = torch.empty_like(q)
        out[metadata.num_tokens :] = 0
        num_keys = int(metadata.seq_lens.max()) * q.shape[0]
        self._pool.run(
            _attend,
            num_keys * q.shape[1] * q.shape[2],
            q.numpy(),
            cache.key.numpy(),
            cache.value.numpy(),
            metadata.query_start_loc.numpy(),
            metadata.seq_lens.numpy(),
            metadata.block_tables.numpy(),
            np.float32(q.shape[2] ** -0.5 * _LOG2_E),
            out.numpy(),
        )
        return out


@njit(cache=True, nogil=True)
def _write_kv(
    part: int,
    num_parts: int,
    k: _Floats,
    v: _Floats,
    key_cache: _Floats,
    value_cache: _Floats,
    slot_mapping: _Ints,
    num_tokens: int,
) -> None:
    block_size = key_cache.shape[2]
    for row in range(num_tokens * part // num_parts, num_tokens * (part + 1) // num_parts):
        block, offset = slot_mapping[row] // block_size, slot_mapping[row] % block_size
        for head in range(k.shape[1]):
            for d in range(k.shape[2]):
                key_cache[block, head, offset, d] = k[row, head, d]
                value_cache[block, head, offset, d] = v[row, head, d]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _attend(
    part: int,
    num_parts: int,
    q: _Floats,
    key_cache: _Floats,
    value_cache: _Floats,
    query_start_loc: _Ints,
    seq_lens: _Ints,
    block_tables: _Ints,
    scale: np.float32,
    out: _Floats,
) -> None:
    """Compute every `num_parts`-th item: sequence x row tile x key/value head."""
    num_kv_heads = key_cache.shape[1]
    group = q.shape[1] // num_kv_heads
    num_lanes = group + group % 2  # heads go in pairs; an odd last one is paired with itself
    acc = np.empty((_TILE_ROWS, num_lanes, q.shape[2]), np.float32)
    softmax = np.empty((_TILE_ROWS, num_lanes, 2), np.float32)
    scores = np.empty((2, key_cache.shape[2]), np.float32)
    item = 0
    for seq in range(seq_lens.shape[0]):
        stop = query_start_loc[seq + 1]
        for first_row in range(query_start_loc[seq], stop, _TILE_ROWS):
            last_row = min(first_row + _TILE_ROWS, stop)
            offset = seq_lens[seq] - stop  # position minus row
            for head in range(num_kv_heads):
                if item % num_parts == part:
                    tile = (first_row, last_row, offset, head)
                    _attend_tile(
                        q, key_cache, value_cache, block_tables[seq], tile, scale, acc, softmax,
                        scores, out,
                    )  # fmt: skip
                item += 1


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _attend_tile(
    q: _Floats,
    key_cache: _Floats,
    value_cache: _Floats,
    block_table: _Ints,
    tile: tuple[int, int, int, int],
    scale: np.float32,
    acc: _Floats,
    softmax: _Floats,
    scores: _Floats,
    out: _Floats,
) -> None:
    """`tile` is (first row, last row + 1, position minus row, key/value head) of one sequence.

    `acc` [rows, lanes, head_dim] and `softmax` [rows, lanes, (maximum, sum)] hold the running
    state, `scores` [2, block_size] one pair of heads against one block. Arrays come whole:
    slices of them would lose the unit stride that vectorised loads need.
    """
    first_row, last_row, offset, kv_head = tile
    group, block_size = q.shape[1] // key_cache.shape[1], key_cache.shape[2]
    first_head = kv_head * group
    acc[: last_row - first_row] = _ZERO
    softmax[: last_row - first_row, :, 0] = _LOWEST
    softmax[: last_row - first_row, :, 1] = _ZERO
    for block in range((last_row - 1 + offset) // block_size + 1):
        keys = key_cache[block_table[block], kv_head]
        values = value_cache[block_table[block], kv_head]
        for row in range(first_row, last_row):
            num_keys = min(block_size, row + offset + 1 - block * block_size)
            if num_keys > 0:
                r = row - first_row
                for lane in range(0, acc.shape[1], 2):
                    q0 = q[row, first_head + lane]
                    q1 = q[row, first_head + min(lane + 1, group - 1)]
                    _score(q0, q1, keys, num_keys, scores)
                    _weigh(scores[0], num_keys, scale, softmax[r, lane], acc[r, lane])
                    _weigh(scores[1], num_keys, scale, softmax[r, lane + 1], acc[r, lane + 1])
                    _add_values(scores, values, num_keys, acc[r, lane], acc[r, lane + 1])
    for row in range(first_row, last_row):
        for lane in range(group):
            total = softmax[row - first_row, lane, 1]
            for d in range(acc.shape[2]):
                out[row, first_head + lane, d] = acc[row - first_row, lane, d] / total


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _score(q0: _Floats, q1: _Floats, keys: _Floats, num_keys: int, scores: _Floats) -> None:
    """Dot products of two heads with the block's keys; what follows `num_keys` is not read."""
    last = num_keys - 1
    for j in range(0, num_keys, 4):
        k0, k1 = keys[j], keys[min(j + 1, last)]
        k2, k3 = keys[min(j + 2, last)], keys[min(j + 3, last)]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = _ZERO
        for d in range(q0.shape[0]):
            a, b = q0[d], q1[d]
            a0 += a * k0[d]
            a1 += a * k1[d]
            a2 += a * k2[d]
            a3 += a * k3[d]
            b0 += b * k0[d]
            b1 += b * k1[d]
            b2 += b * k2[d]
            b3 += b * k3[d]
        scores[0, j], scores[0, j + 1], scores[0, j + 2], scores[0, j + 3] = a0, a1, a2, a3
        scores[1, j], scores[1, j + 1], scores[1, j + 2], scores[1, j + 3] = b0, b1, b2, b3


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _weigh(
    scores: _Floats, num_keys: int, scale: np.float32, softmax: _Floats, acc: _Floats
) -> None:
    """Turn one head's scores into softmax weights, 0 from `num_keys` on; update the running state.

    `softmax` is (maximum, sum of weights); weights are relative to the maximum of all blocks so
    far, so what earlier blocks left fades when the maximum rises.
    """
    maximum = softmax[0]
    for j in range(num_keys):
        maximum = max(maximum, scores[j])
    total = _ZERO
    for j in range(scores.shape[0]):
        weight = _exp2((scores[j] - maximum) * scale) if j < num_keys else _ZERO
        scores[j] = weight
        total += weight
    if maximum != softmax[0]:
        fade = _exp2((softmax[0] - maximum) * scale)
        softmax[0] = maximum
        softmax[1] *= fade
        for d in range(acc.shape[0]):
            acc[d] *= fade
    softmax[1] += total


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _add_values(
    weights: _Floats, values: _Floats, num_keys: int, acc0: _Floats, acc1: _Floats
) -> None:
    """Add the block's weighted values to two heads; what follows `num_keys` is not read."""
    last = num_keys - 1
    for j in range(0, num_keys, 4):
        v0, v1 = values[j], values[min(j + 1, last)]
        v2, v3 = values[min(j + 2, last)], values[min(j + 3, last)]
        a0, a1, a2, a3 = weights[0, j], weights[0, j + 1], weights[0, j + 2], weights[0, j + 3]
        b0, b1, b2, b3 = weights[1, j], weights[1, j + 1], weights[1, j + 2], weights[1, j + 3]
        for d in range(acc0.shape[0]):
            acc0[d] += a0 * v0[d] + a1 * v1[d] + a2 * v2[d] + a3 * v3[d]
            acc1[d] += b0 * v0[d] + b1 * v1[d] + b2 * v2[d] + b3 * v3[d]


@njit(cache=True, fastmath={"contract"})
def _exp2(x: np.float32) -> np.float32:
    """2**x for x <= 0, at least 2**-126; unlike libm's it vectorises."""
    clipped = max(np.float32(x), _EXP2_MIN)
    shifted = np.float32(clipped + _MAGIC)
    f = clipped - (shifted - _MAGIC)
    power = _ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    exponent = shifted.view(np.int32) << _MANTISSA_BITS
    bits = np.int32(np.float32(power).view(np.int32) + exponent)
    return bits.view(np.float32)
