"""One layer's keys and values for kernels on CPU, and how rows get there."""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qwen3_ray.attention.numba_panels import HALF_BYTES
from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_memory import store_float, store_half
from qwen3_ray.cpu.numba_tiles import LANES

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]


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
            begin = (block * blocks.num_kv_heads + head) * block_size * head_dim
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
