"""Where `top_k` and `top_p` cut a row, found without a sort.

Tokens are ordered by logit, the lowest id first among equals. `top_k` keeps that many of the first
that `min_p` leaves, `top_p` the fewest of those whose mass reaches its share of theirs. The search
counts what lies above a few levels between the largest and the smallest logit, chunk by chunk;
that tells between which levels the cuts are. The tokens there, few as a rule, are gathered, and
one program finds the border among them, exactly. Masses are integers (`triton_logits.mass`): sums
have no order, and a border moves only where a rounding of weights moves it.
"""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.triton_candidates import (
    LAST_LEVEL,
    NUM_LEVELS,
    at,
    bracket,
    gather_candidates,
    load_tally,
    tally_chunks,
    target,
)
from qwen3_ray.runner.triton_logits import (
    Chunks,
    Survey,
    is_cut,
    is_drawn,
    key_of,
    load_logits,
    mass,
    row_largest,
    value_of,
)

_TILE = 64
_NUM_WARPS = 4
_WAYS = tl.constexpr(16)
_BLOCK = tl.constexpr(256)
_FINISH_WARPS = 8
_NO_ID = tl.constexpr(2**31 - 1)


class Border(NamedTuple):
    """Of each row that is cut: kept is what is larger than `lowest`, or equal up to `last_id`.

    The entries of other rows are void.
    """

    lowest: torch.Tensor
    """[num_rows], float32."""
    last_id: torch.Tensor
    """[num_rows], int32."""

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> Border:
        """To be filled."""
        return cls(
            torch.empty(num_rows, dtype=torch.float32, device=device),
            torch.empty(num_rows, dtype=torch.int32, device=device),
        )


def find_border(
    logits: torch.Tensor,
    rows: DeviceRows,
    num_tokens: int,
    survey: Survey,
    chunks: Chunks,
    out: Border,
) -> None:
    """Fill `out`. What `min_p` cuts off may be above the border. Arguments as in `choose`."""
    num_rows, device = len(logits), logits.device
    grid = (num_rows, chunks.num)
    counts = torch.empty((*grid, NUM_LEVELS), dtype=torch.int32, device=device)
    masses = torch.empty((*grid, NUM_LEVELS), dtype=torch.int64, device=device)
    candidates = torch.empty((num_rows, num_tokens), dtype=torch.int32, device=device)
    given = (logits, logits.stride(0), num_tokens, *rows[:4], survey.values, counts, masses)
    sizes = {"num_chunks": chunks.num, "padded": chunks.padded}
    tile = min(_TILE, chunks.size)
    tally_chunks[grid](*given, **sizes, chunk_size=chunks.size, tile=tile, num_warps=_NUM_WARPS)
    gather_candidates[grid](
        *given, candidates, **sizes, chunk_size=chunks.size, num_warps=_NUM_WARPS
    )
    _finish[(num_rows,)](*given, candidates, *out, **sizes, num_warps=_FINISH_WARPS)


@device_function
def _load_candidates(
    candidates: tl.tensor,
    start: tl.tensor,
    num: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
) -> tl.tensor:
    """A block of ids and their logits; minus infinity beyond the last of `num`."""
    index = start + tl.arange(0, _BLOCK)
    ids = tl.load(candidates + row * num_tokens + index, mask=index < num, other=num_tokens)
    return ids, load_logits(logits, row, stride, ids, num_tokens)


@device_function
def _search(
    candidates: tl.tensor,
    num: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    before: tl.tensor,
    enough: tl.tensor,
    is_count: tl.constexpr,
) -> tl.tensor:
    """The largest key from which on up there is enough, and what is above it.

    It is between `low`, which has enough, and `high`. Enough is a count or a mass, `before`
    included, of at least that.

    Returns:
        The key, and the count and the mass of candidates of larger keys.
    """
    while low < high:
        step = (high - low) // (_WAYS + 1) + 1
        keys = low + step * (tl.arange(0, _WAYS) + 1)
        amounts = tl.zeros([_BLOCK, _WAYS], tl.int64)
        for start in range(0, num, _BLOCK):
            _, x = _load_candidates(candidates, start, num, logits, row, stride, num_tokens)
            one = tl.full([_BLOCK], 1, tl.int64)
            amount = one if is_count else mass(x, largest, temperature)
            amounts += tl.where(key_of(x)[:, None] >= keys[None, :], amount[:, None], 0)
        has_enough = (before + tl.sum(amounts, axis=0)).to(tl.float64) >= enough
        low += step * tl.sum(has_enough.to(tl.int64))
        high = tl.minimum(high, low + step - 1)
    counts, masses = tl.zeros([_BLOCK], tl.int64), tl.zeros([_BLOCK], tl.int64)
    for start in range(0, num, _BLOCK):
        _, x = _load_candidates(candidates, start, num, logits, row, stride, num_tokens)
        is_above = key_of(x) > low
        counts += is_above.to(tl.int64)
        masses += tl.where(is_above, mass(x, largest, temperature), 0)
    return low, tl.sum(counts), tl.sum(masses)


@device_function
def _key_range(
    candidates: tl.tensor,
    num: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
) -> tl.tensor:
    """The candidates' smallest and largest key."""
    lows, highs = tl.full([_BLOCK], 2**31, tl.int64), tl.full([_BLOCK], -(2**31), tl.int64)
    for start in range(0, num, _BLOCK):
        _, x = _load_candidates(candidates, start, num, logits, row, stride, num_tokens)
        highs = tl.maximum(highs, key_of(x))
        lows = tl.minimum(lows, tl.where(x > -float("inf"), key_of(x), 2**31))
    return tl.min(lows), tl.max(highs)


@device_function
def _nth_tie(
    candidates: tl.tensor,
    num: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    border: tl.tensor,
    number: tl.tensor,
) -> tl.tensor:
    """The id of the candidate that is the `number`-th, from 1 on, whose key is `border`."""
    token_id, num_seen = _NO_ID + 0, tl.full([], 0, tl.int64)
    for start in range(0, num, _BLOCK):
        ids, x = _load_candidates(candidates, start, num, logits, row, stride, num_tokens)
        is_tie = key_of(x) == border
        rank = num_seen + tl.cumsum(is_tie.to(tl.int64), axis=0)
        token_id = tl.minimum(token_id, tl.min(tl.where(is_tie & (rank == number), ids, _NO_ID)))
        num_seen += tl.sum(is_tie.to(tl.int64))
    return token_id


@kernel
def _finish(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    temperatures: tl.tensor,
    max_gaps: tl.tensor,  # noqa: ARG001 - the candidates are within
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    survey: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    candidates: tl.tensor,
    lowest: tl.tensor,
    last_ids: tl.tensor,
    num_chunks: tl.constexpr,
    padded: tl.constexpr,
) -> None:
    """Fill a `Border` from the candidates: one program for each row."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row)
    top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
    largest = row_largest(survey, row, num_chunks, padded)
    if (is_cut(temperature, top_k, top_p) & is_drawn(temperature, largest)) == 0:
        return
    count = tl.sum(load_tally(counts, row, num_chunks, padded), axis=0)
    total = tl.sum(load_tally(masses, row, num_chunks, padded), axis=0)
    is_k, first, last = bracket(count, total, top_k, top_p)
    num_before, mass_before = at(count, first - 1).to(tl.int64), at(total, first - 1)
    num = at(count, last) - at(count, first - 1)
    kept_mass = at(total, LAST_LEVEL)
    low, high = _key_range(candidates, num, logits, row, stride, num_tokens)
    border, num_ties = low, tl.full([], _NO_ID, tl.int64)
    if is_k:
        border, num_above, mass_above = _search(
            candidates, num, logits, row, stride, num_tokens, largest, temperature,
            low, high, num_before, top_k.to(tl.float64), True,
        )  # fmt: skip
        num_ties = top_k - num_before - num_above
        of_tie = mass(value_of(border), largest, temperature)
        kept_mass = mass_before + mass_above + num_ties * of_tie
        low = border
    if top_p < 1:
        enough = target(top_p, kept_mass)
        border, _, mass_above = _search(
            candidates, num, logits, row, stride, num_tokens, largest, temperature,
            low, high, mass_before, enough, False,
        )  # fmt: skip
        of_tie = tl.maximum(mass(value_of(border), largest, temperature), 1)
        missing = enough - (mass_before + mass_above).to(tl.float64)
        most = tl.where(border == low, num_ties, _NO_ID).to(tl.float64)
        num_ties = tl.maximum(tl.minimum(tl.ceil(missing / of_tie), most), 1).to(tl.int64)
    lowest_kept, last_id = value_of(border), _NO_ID + 0
    if is_k | (top_p < 1):
        last_id = _nth_tie(candidates, num, logits, row, stride, num_tokens, border, num_ties)
    else:
        lowest_kept = -float("inf")
    tl.store(lowest + row, lowest_kept)
    tl.store(last_ids + row, last_id)
