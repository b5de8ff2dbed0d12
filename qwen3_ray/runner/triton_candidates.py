"""The tokens of a row among which its cuts are, as a rule few: the first part of `triton_cut`."""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.runner.triton_logits import (
    distance,
    is_cut,
    is_drawn,
    load_logits,
    mass,
    row_largest,
    row_smallest,
    within_gap,
)

NUM_LEVELS = 32
LEVELS = tl.constexpr(NUM_LEVELS)
LAST_LEVEL = tl.constexpr(NUM_LEVELS - 1)
_PER_SQUARE = tl.constexpr(1 / 30**2)
_MAX_RANGE = tl.constexpr(64.0)


@device_function
def _level(index: tl.tensor, largest: tl.tensor, smallest: tl.tensor) -> tl.tensor:
    """Falling values, from the largest logit on: closer at the top, the last below everything."""
    reach = tl.minimum(distance(largest, smallest), _MAX_RANGE)
    # One rounding, whatever the compiler would make of it: two kernels must agree.
    level = tl.fma((index * index).to(tl.float32) * _PER_SQUARE, -reach, largest)
    return tl.where(index == LAST_LEVEL, -float("inf"), level)


@kernel
def tally_chunks(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    temperatures: tl.tensor,
    max_gaps: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    survey: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    num_chunks: tl.constexpr,
    padded: tl.constexpr,
    chunk_size: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Count and mass of each chunk's tokens from each level up: [num_rows, num_chunks, levels]."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    largest = row_largest(survey, row, num_chunks, padded)
    cut = is_cut(temperature, tl.load(top_ks + row), tl.load(top_ps + row))
    if (cut & is_drawn(temperature, largest)) == 0:
        return
    smallest = row_smallest(survey, row, num_chunks, padded)
    max_gap = tl.load(max_gaps + row)
    index = tl.arange(0, LEVELS)
    levels = _level(index, largest, smallest)
    count = tl.zeros([tile, LEVELS], tl.int32)
    total = tl.zeros([tile, LEVELS], tl.int64)
    for start in range(0, chunk_size, tile):
        ids = chunk * chunk_size + start + tl.arange(0, tile)
        x = load_logits(logits, row, stride, ids, num_tokens)
        is_above = (x[:, None] >= levels[None, :]) & within_gap(x, largest, max_gap)[:, None]
        count += is_above.to(tl.int32)
        total += tl.where(is_above, mass(x, largest, temperature)[:, None], 0)
    place = (row * num_chunks + chunk) * LEVELS + index
    tl.store(counts + place, tl.sum(count, axis=0))
    tl.store(masses + place, tl.sum(total, axis=0))


@device_function
def at(values: tl.tensor, index: tl.tensor) -> tl.tensor:
    """The last axis' entry at `index` of [..., levels]; 0 before the first."""
    is_it = tl.arange(0, LEVELS) == index
    if len(values.shape) == 2:
        is_it = is_it[None, :]
    return tl.sum(tl.where(is_it, values, 0), axis=len(values.shape) - 1)


@device_function
def load_tally(
    tally: tl.tensor, row: tl.tensor, num_chunks: tl.constexpr, padded: tl.constexpr
) -> tl.tensor:
    """[padded, levels], 0 beyond the chunks."""
    chunk = tl.arange(0, padded)[:, None]
    place = (row * num_chunks + chunk) * LEVELS + tl.arange(0, LEVELS)[None, :]
    return tl.load(tally + place, mask=chunk < num_chunks, other=0)


@device_function
def target(top_p: tl.tensor, total: tl.tensor) -> tl.tensor:
    """The mass that is enough."""
    return top_p.to(tl.float64) * total.to(tl.float64)


@device_function
def bracket(count: tl.tensor, total: tl.tensor, top_k: tl.tensor, top_p: tl.tensor) -> tl.tensor:
    """Whether `top_k` cuts; first and last index of the levels between which the cuts are.

    From a row's tally. Level i stands for what is below level i - 1 and not below level i. `top_k`
    cuts at the last one; the mass of what it leaves is at least that of the levels before.
    """
    is_k = (top_k > 0) & (top_k < at(count, LAST_LEVEL))
    last = tl.where(is_k, tl.sum((count < top_k).to(tl.int32)), LAST_LEVEL)
    least_mass = tl.where(is_k, at(total, last - 1), at(total, LAST_LEVEL))
    enough = target(top_p, least_mass)
    first = tl.where(top_p < 1, tl.sum((total.to(tl.float64) < enough).to(tl.int32)), last)
    last = tl.where(is_k, last, first)
    return is_k, tl.minimum(first, last), last


@kernel
def gather_candidates(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    temperatures: tl.tensor,
    max_gaps: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    survey: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    candidates: tl.tensor,
    num_chunks: tl.constexpr,
    padded: tl.constexpr,
    chunk_size: tl.constexpr,
) -> None:
    """Put each row's ids between the levels of its cuts at the start of `candidates`, in order."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
    largest = row_largest(survey, row, num_chunks, padded)
    if (is_cut(temperature, top_k, top_p) & is_drawn(temperature, largest)) == 0:
        return
    count = load_tally(counts, row, num_chunks, padded)
    total = tl.sum(load_tally(masses, row, num_chunks, padded), axis=0)
    _, first, last = bracket(tl.sum(count, axis=0), total, top_k, top_p)
    per_chunk = at(count, last) - at(count, first - 1)
    chunks = tl.arange(0, padded)
    if tl.sum(tl.where(chunks == chunk, per_chunk, 0)) == 0:
        return
    start = tl.sum(tl.where(chunks < chunk, per_chunk, 0))
    smallest = row_smallest(survey, row, num_chunks, padded)
    ids = chunk * chunk_size + tl.arange(0, chunk_size)
    x = load_logits(logits, row, stride, ids, num_tokens)
    is_below = (first == 0) | (x < _level(first - 1, largest, smallest))
    is_between = is_below & (x >= _level(last, largest, smallest))
    is_between = is_between & within_gap(x, largest, tl.load(max_gaps + row))
    place = start + tl.cumsum(is_between.to(tl.int32), axis=0) - 1
    tl.store(candidates + row * num_tokens + place, ids, mask=is_between)
