"""`philox.uniform`, compiled."""

from __future__ import annotations

import numpy as np

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.runner import philox

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
def uniform(seed: int, position: int, choice: int) -> float:
    """`philox.uniform` for an int64 seed."""
    key = np.uint64(seed)
    k0, k1 = key & _LOW, key >> _32
    c0, c1, c2, c3 = np.uint64(position), np.uint64(choice), _ZERO, _ZERO
    for _ in range(_NUM_ROUNDS):
        product_0 = _M0 * c0
        product_1 = _M1 * c2
        c0, c1 = (product_1 >> _32) ^ c1 ^ k0, product_1 & _LOW
        c2, c3 = (product_0 >> _32) ^ c3 ^ k1, product_0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.float64(((c0 << _32) | c1) >> _11) * 2.0**-53
