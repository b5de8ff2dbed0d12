"""Philox4x32-10: random numbers as a pure function of a key and a counter (Salmon et al., 2011).

Plain Python; the oracle of the kernel in `numba_philox`, and the source of draws off the CPU.
"""

from __future__ import annotations

NUM_ROUNDS = 10
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
_MASK = 0xFFFFFFFF

Counter = tuple[int, int, int, int]


def philox4x32(counter: Counter, key: tuple[int, int]) -> Counter:
    """Four random 32-bit words for a counter of four and a key of two 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0 = (product_1 >> 32) ^ c1 ^ k0
        c1 = product_1 & _MASK
        c2 = (product_0 >> 32) ^ c3 ^ k1
        c3 = product_0 & _MASK
        k0 = (k0 + WEYL_0) & _MASK
        k1 = (k1 + WEYL_1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int, choice: int) -> float:
    """The number in [0, 1) that picks the token at `position` of one answer to a request.

    `seed`, of the request, is a signed 64-bit integer, `position` the absolute index of the token
    to be sampled (prompt included), `choice` the number of the answer. The counter's other words
    (draw, lane) are 0. 53 random bits.
    """
    key = (seed & _MASK, (seed >> 32) & _MASK)
    word_0, word_1, _, _ = philox4x32((position, choice, 0, 0), key)
    return float(((word_0 << 32 | word_1) >> 11) * 2.0**-53)
