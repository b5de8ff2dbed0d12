"""What the sampling kernels share: rows in chunks, and logits as keys and as weights.

A row is cut into chunks of fixed size, one program each, and what a chunk comes to is merged in
the order of chunks. No sum here depends on an order: masses are integers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function

CHUNK = 4096
"""Logits that one program reads."""

_ONE = tl.constexpr(2.0**42)
_FAR = tl.constexpr(2.0**60)
_SIGN = tl.constexpr(0x7FFFFFFF)


class Chunks(NamedTuple):
    """How rows are cut."""

    size: int
    num: int
    padded: int
    """`num` up to the next power of two."""


def chunks_of(num_tokens: int, size: int) -> Chunks:
    """Of a row of `num_tokens`; `size` is a power of two, at least 4."""
    num = -(-num_tokens // size)
    return Chunks(size, num, 1 << (num - 1).bit_length())


class Survey(NamedTuple):
    """What is known of a row's chunks."""

    values: torch.Tensor
    """[num_rows, 2, num_chunks], float32: the largest and the smallest logit that is not banned.

    The largest is infinity in a chunk with a logit that is no number, minus infinity in one that
    is all banned.
    """
    token_ids: torch.Tensor
    """[num_rows, num_chunks], int32: the lowest id with the largest logit."""


@device_function
def load_logits(
    logits: tl.tensor, row: tl.tensor, stride: tl.tensor, ids: tl.tensor, num_tokens: tl.tensor
) -> tl.tensor:
    """Logits of `ids` in float32, minus infinity beyond the row's end; 0 has no sign."""
    x = tl.load(logits + row * stride + ids, mask=ids < num_tokens, other=-float("inf"))
    x = x.to(tl.float32)
    return tl.where(x == 0, 0.0, x)


@device_function
def row_largest(
    survey: tl.tensor, row: tl.tensor, num_chunks: tl.constexpr, padded: tl.constexpr
) -> tl.tensor:
    """See `Survey.values`."""
    chunk = tl.arange(0, padded)
    place = survey + row * 2 * num_chunks + chunk
    return tl.max(tl.load(place, mask=chunk < num_chunks, other=-float("inf")))


@device_function
def row_smallest(
    survey: tl.tensor, row: tl.tensor, num_chunks: tl.constexpr, padded: tl.constexpr
) -> tl.tensor:
    """See `Survey.values`."""
    chunk = tl.arange(0, padded)
    place = survey + (row * 2 + 1) * num_chunks + chunk
    return tl.min(tl.load(place, mask=chunk < num_chunks, other=float("inf")))


@device_function
def is_drawn(temperature: tl.tensor, largest: tl.tensor) -> tl.tensor:
    """Whether the row needs more than its survey."""
    return (temperature > 0) & (tl.abs(largest) < float("inf"))


@device_function
def is_cut(temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor) -> tl.tensor:
    """Whether where the row is cut must be searched for; `max_gap` needs no search."""
    return (temperature > 0) & ((top_k > 0) | (top_p < 1))


@device_function
def within_gap(x: tl.tensor, largest: tl.tensor, max_gap: tl.tensor) -> tl.tensor:
    """Of logits: whether they are not banned, and `min_p` keeps them."""
    border = largest.to(tl.float64) - max_gap.to(tl.float64)
    return (x.to(tl.float64) >= border) & (x > -float("inf"))


@device_function
def scaled(x: tl.tensor, largest: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """How far logits are below the largest, at this temperature; 0 or less, and finite."""
    return -distance(largest, x) / temperature


@device_function
def distance(larger: tl.tensor, smaller: tl.tensor) -> tl.tensor:
    """Of two numbers, at most 2^60: no step overflows, not with a temperature of 2^-66 either."""
    return tl.minimum(larger * 0.5 - smaller * 0.5, _FAR / 2) * 2


@device_function
def mass(x: tl.tensor, largest: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Weights in units of 2^-42 of the largest one's, int64: the sum of 2^20 of them fits."""
    return (tl.exp(scaled(x, largest, temperature)) * _ONE).to(tl.int64)


@device_function
def key_of(x: tl.tensor) -> tl.tensor:
    """float32 -> int64 of 32 bits, in the same order; -0 must not come."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ _SIGN).to(tl.int64)


@device_function
def value_of(key: tl.tensor) -> tl.tensor:
    """The opposite of `key_of`."""
    bits = tl.where(key >= 0, key, key ^ _SIGN).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)
