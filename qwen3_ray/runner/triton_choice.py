"""One token for each row of logits, by Triton kernels: the largest logit, or a draw.

Greedy rows take the largest logit, the lowest id among equals. Others take the largest of
`logit / temperature + noise` over the tokens that `min_p`, `top_k` and `top_p` keep, which draws
each with its probability (the noise is Gumbel's, see `gpu.triton_philox`): no sums, no sort. Rows
are spread over programs chunk by chunk; a row's token depends neither on other rows nor on the
chunks. Grids follow from shapes alone, and nothing waits for the device: all of it can be captured
in a CUDA graph.
"""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

import torch
import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.gpu.triton_philox import gumbel_noise
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.sampling_rows import NOTHING_ALLOWED, NUMERICAL_ERROR
from qwen3_ray.runner.triton_cut import Border, find_border
from qwen3_ray.runner.triton_logits import (
    CHUNK,
    Chunks,
    Survey,
    chunks_of,
    is_cut,
    is_drawn,
    load_logits,
    row_largest,
    scaled,
    within_gap,
)

METHOD = "philox4x32-10 draw 1, fp32 Gumbel noise of each token, top_p by masses of 2^-42"
"""Names the way of sampling in the numerics fingerprint."""

_NUM_WARPS = 8
_NUMERICAL_ERROR = tl.constexpr(NUMERICAL_ERROR)
_NOTHING_ALLOWED = tl.constexpr(NOTHING_ALLOWED)
_NO_ID = tl.constexpr(2**31 - 1)


def choose(
    logits: torch.Tensor,
    rows: DeviceRows,
    num_valid_token_ids: int,
    out: torch.Tensor,
    *,
    may_cut: bool = True,
    is_edited: bool = False,
    chunk_size: int = CHUNK,
) -> None:
    """Choose one token below `num_valid_token_ids` for each row.

    Takes 4 bytes of memory for each logit where rows may be cut, little else.

    Args:
        logits: [num_rows, vocab_size], contiguous rows; further columns are never read.
        rows: of as many rows.
        num_valid_token_ids: at most 2^20.
        out: [num_rows], int32. Becomes the tokens, `NUMERICAL_ERROR` where any logit is infinite
            or no number, and `NOTHING_ALLOWED` where all are banned.
        may_cut: whether any row has a `top_k` above 0 or a `top_p` below 1; without, the search
            for such cuts is not even launched.
        is_edited: minus infinity stands for a banned token, and is no error.
        chunk_size: logits for each program; changes no token.
    """
    num_rows = len(out)
    if num_rows == 0:
        return
    chunks = chunks_of(num_valid_token_ids, chunk_size)
    grid = (num_rows, chunks.num)
    survey = take_survey(logits, num_valid_token_ids, chunks, is_edited=is_edited)
    border = Border.empty(num_rows, logits.device)
    if may_cut:
        find_border(logits, rows, num_valid_token_ids, survey, chunks, border)
    scores = torch.empty(grid, dtype=torch.float32, device=logits.device)
    drawn_ids = torch.empty(grid, dtype=torch.int32, device=logits.device)
    _draw[grid](
        logits,
        logits.stride(0),
        num_valid_token_ids,
        *rows,
        survey.values,
        *border,
        scores,
        drawn_ids,
        num_chunks=chunks.num,
        padded=chunks.padded,
        chunk_size=chunks.size,
        num_warps=_NUM_WARPS,
    )
    _pick[(num_rows,)](
        rows.temperature,
        *survey,
        scores,
        drawn_ids,
        out,
        num_chunks=chunks.num,
        padded=chunks.padded,
    )


def take_survey(
    logits: torch.Tensor, num_tokens: int, chunks: Chunks, *, is_edited: bool
) -> Survey:
    """Of the rows' first `num_tokens` logits; see `choose`."""
    num_rows = len(logits)
    values = torch.empty((num_rows, 2, chunks.num), dtype=torch.float32, device=logits.device)
    token_ids = torch.empty((num_rows, chunks.num), dtype=torch.int32, device=logits.device)
    _survey[(num_rows, chunks.num)](
        logits,
        logits.stride(0),
        num_tokens,
        int(is_edited),
        values,
        token_ids,
        num_chunks=chunks.num,
        chunk_size=chunks.size,
        num_warps=_NUM_WARPS,
    )
    return Survey(values, token_ids)


@device_function
def _best(values: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """The largest value, and the lowest of `ids` that have it."""
    largest = tl.max(values)
    return largest, tl.min(tl.where(values == largest, ids, _NO_ID))


@kernel(do_not_specialize=["is_edited"])
def _survey(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    is_edited: tl.tensor,
    values: tl.tensor,
    token_ids: tl.tensor,
    num_chunks: tl.constexpr,
    chunk_size: tl.constexpr,
) -> None:
    """Fill a `Survey`: one program for each row and chunk."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = chunk * chunk_size + tl.arange(0, chunk_size)
    is_known = ids < num_tokens
    x = load_logits(logits, row, stride, ids, num_tokens)
    is_finite = tl.abs(x) < float("inf")
    is_banned = (is_edited > 0) & (x == -float("inf"))
    is_bad = is_known & (is_finite == 0) & (is_banned == 0)
    largest, best_id = _best(tl.where(is_finite, x, -float("inf")), ids)
    smallest = tl.min(tl.where(is_finite, x, float("inf")))
    num_bad = tl.sum(is_bad.to(tl.int32))
    tl.store(values + row * 2 * num_chunks + chunk, tl.where(num_bad > 0, float("inf"), largest))
    tl.store(values + (row * 2 + 1) * num_chunks + chunk, smallest)
    tl.store(token_ids + row * num_chunks + chunk, best_id)


@kernel
def _draw(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    temperatures: tl.tensor,
    max_gaps: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    choices: tl.tensor,
    survey: tl.tensor,
    lowest_kept: tl.tensor,
    last_kept_ids: tl.tensor,
    scores: tl.tensor,
    drawn_ids: tl.tensor,
    num_chunks: tl.constexpr,
    padded: tl.constexpr,
    chunk_size: tl.constexpr,
) -> None:
    """Each chunk's kept token with the largest score, and that score; see `Border`."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    largest = row_largest(survey, row, num_chunks, padded)
    if is_drawn(temperature, largest) == 0:
        return
    cut = is_cut(temperature, tl.load(top_ks + row), tl.load(top_ps + row))
    lowest = tl.load(lowest_kept + row, mask=cut, other=-float("inf"))
    last_id = tl.load(last_kept_ids + row, mask=cut, other=_NO_ID)
    best, best_id = -float("inf"), _NO_ID + 0
    if tl.load(survey + row * 2 * num_chunks + chunk) >= lowest:
        first = chunk * chunk_size
        ids = first + tl.arange(0, chunk_size)
        x = load_logits(logits, row, stride, ids, num_tokens)
        is_kept = (x > lowest) | ((x == lowest) & (ids <= last_id))
        is_kept = is_kept & within_gap(x, largest, tl.load(max_gaps + row))
        noise = gumbel_noise(
            tl.load(seeds + row),
            tl.load(positions + row),
            tl.load(choices + row),
            first,
            chunk_size,
        )
        score = scaled(x, largest, temperature) + noise
        best, best_id = _best(tl.where(is_kept, score, -float("inf")), ids)
    tl.store(scores + row * num_chunks + chunk, best)
    tl.store(drawn_ids + row * num_chunks + chunk, best_id)


@kernel
def _pick(
    temperatures: tl.tensor,
    survey: tl.tensor,
    survey_ids: tl.tensor,
    scores: tl.tensor,
    drawn_ids: tl.tensor,
    out: tl.tensor,
    num_chunks: tl.constexpr,
    padded: tl.constexpr,
) -> None:
    """Each row's token, from its chunks."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, padded)
    is_chunk = chunk < num_chunks
    values = tl.load(survey + row * 2 * num_chunks + chunk, mask=is_chunk, other=-float("inf"))
    ids = tl.load(survey_ids + row * num_chunks + chunk, mask=is_chunk, other=_NO_ID)
    largest, token_id = _best(values, ids)
    if is_drawn(tl.load(temperatures + row), largest):
        place = row * num_chunks + chunk
        score = tl.load(scores + place, mask=is_chunk, other=-float("inf"))
        ids = tl.load(drawn_ids + place, mask=is_chunk, other=_NO_ID)
        _, token_id = _best(score, ids)
    token_id = tl.where(largest == float("inf"), _NUMERICAL_ERROR, token_id)
    token_id = tl.where(largest == -float("inf"), _NOTHING_ALLOWED, token_id)
    tl.store(out + row, token_id)
