"""Random numbers in Triton kernels, as a pure function of a key and a counter.

Philox4x32-10 with key = seed and counter = (position, choice, draw, lane), as in `runner.philox`.
Draw 0 with lane 0 is the one number with which the CPU picks a token. Draw 1 is here: a number for
each token, that of token `i` from word `i % 4` of lane `i // 4`.
"""

from __future__ import annotations

import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function

_GUMBEL_DRAW = tl.constexpr(1)
_TO_UNIT = tl.constexpr(2.0**-32)
_SMALL = tl.constexpr(2.0**-4)


@device_function
def random_words(
    seed: tl.tensor, position: tl.tensor, choice: tl.tensor, draw: tl.tensor, lane: tl.tensor
) -> tl.tensor:
    """Four tensors of uint32 in the shape of `lane`, which is int32; all else are numbers."""
    zeros = tl.zeros_like(lane)
    return tl.philox(seed, zeros + position, zeros + choice, zeros + draw, lane)


@device_function
def gumbel_noise(
    seed: tl.tensor,
    position: tl.tensor,
    choice: tl.tensor,
    first_token: tl.tensor,
    count: tl.constexpr,
) -> tl.tensor:
    """[count], float32: independent Gumbel variables for tokens from `first_token` on.

    Both are multiples of 4. With what a token's variable is depends on nothing but its id and the
    three numbers.
    """
    lane = first_token // 4 + tl.arange(0, count // 4)
    word_0, word_1, word_2, word_3 = random_words(seed, position, choice, _GUMBEL_DRAW, lane)
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    return gumbel(tl.reshape(words, [count]))


@device_function
def gumbel(words: tl.tensor) -> tl.tensor:
    """uint32 -> a Gumbel variable, float32.

    It is minus the logarithm of an exponential one, -log(1 - u) for u = (word + 1/2) / 2^32. Small
    u, of which the largest of many variables comes, keep all of their digits: no u rounds to 1,
    and 1 - u is formed only where that loses nothing.
    """
    share = (words.to(tl.float32) + 0.5) * _TO_UNIT
    series = share * (1 + share * (1 / 2 + share * (1 / 3 + share * (1 / 4 + share / 5))))
    rest = tl.maximum(1 - share, _TO_UNIT / 2)
    return -tl.log(tl.where(share < _SMALL, series, -tl.log(rest)))
