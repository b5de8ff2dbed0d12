"""How likely each row's token was, and which were the likeliest, by Triton kernels.

Of the model's own logits, whatever was edited. Sums are float64, in the order of chunks.
"""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR
from qwen3_ray.runner.triton_edits import field, load_field
from qwen3_ray.runner.triton_logits import CHUNK, chunks_of, load_logits
from qwen3_ray.sampling_params import MAX_LOGPROBS

_TOKEN_ID, _NUM_TOP = field("token_id"), field("num_top")
_TOP_PADDED = tl.constexpr(1 << (MAX_LOGPROBS - 1).bit_length())
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_NUMERICAL_ERROR = tl.constexpr(NUMERICAL_ERROR)
_NO_ID = tl.constexpr(2**31 - 1)
_NUM_WARPS = 8


class Scores(NamedTuple):
    """As in `Outcome`; void for rows that want none, or are not finite."""

    logprobs: torch.Tensor
    """[num_rows], float32."""
    ranks: torch.Tensor
    """[num_rows], int64."""
    top_ids: torch.Tensor
    """[num_rows, num_top], int64."""
    top_logprobs: torch.Tensor
    """[num_rows, num_top], float32."""


def score(
    logits: torch.Tensor,
    num_tokens: int,
    records: torch.Tensor,
    token_ids: torch.Tensor,
    num_top: int,
    *,
    chunk_size: int = CHUNK,
) -> Scores:
    """Score every row that wants it.

    Args:
        logits: [num_rows, vocab_size].
        num_tokens: ids beyond are not known.
        records: the rows, see `DeviceBatch.rows`.
        token_ids: [num_rows], int32, what was sampled: for rows that have no id of their own.
            `NUMERICAL_ERROR` for those that are not finite.
        num_top: the most likeliest ids that any row wants, at most `num_tokens`.
        chunk_size: logits for each program; changes no digit that matters.
    """
    num_rows, device = len(token_ids), logits.device
    chunks = chunks_of(num_tokens, chunk_size)
    grid = (num_rows, chunks.num)
    parts = [
        torch.empty(shape, dtype=dtype, device=device)
        for shape, dtype in (
            (grid, torch.float32),
            (grid, torch.float64),
            (grid, torch.int32),
            ((*grid, num_top), torch.float32),
            ((*grid, num_top), torch.int32),
        )
    ]
    scores = Scores(
        torch.empty(num_rows, dtype=torch.float32, device=device),
        torch.empty(num_rows, dtype=torch.int64, device=device),
        torch.empty((num_rows, num_top), dtype=torch.int64, device=device),
        torch.empty((num_rows, num_top), dtype=torch.float32, device=device),
    )
    given = (logits, logits.stride(0), num_tokens, records, token_ids, num_top, *parts)
    sizes = {"num_chunks": chunks.num, "num_warps": _NUM_WARPS}
    _score_chunks[grid](*given, chunk_size=chunks.size, **sizes)
    _score_rows[(num_rows,)](*given, *scores, padded=chunks.padded, **sizes)
    return scores


@device_function
def _is_scored(records: tl.tensor, row: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Whether the row wants to know, and can."""
    is_finite = tl.load(token_ids + row) != _NUMERICAL_ERROR
    return (load_field(records, row, _NUM_TOP) >= 0) & is_finite


@device_function
def _scored_token(records: tl.tensor, row: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    given = load_field(records, row, _TOKEN_ID)
    return tl.where(given >= 0, given, tl.load(token_ids + row).to(tl.int64))


@device_function
def _first_best(values: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """The largest value, and the lowest of `ids` that have it."""
    best = tl.max(values)
    return best, tl.min(tl.where(values == best, ids, _NO_ID))


@kernel(do_not_specialize=["num_top"])
def _score_chunks(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    records: tl.tensor,
    token_ids: tl.tensor,
    num_top: tl.tensor,
    maxima: tl.tensor,
    sums: tl.tensor,
    num_better: tl.tensor,
    top_values: tl.tensor,
    top_ids: tl.tensor,
    num_chunks: tl.constexpr,
    chunk_size: tl.constexpr,
) -> None:
    """Of a chunk: its largest logit, the sum of weights, how many come before, the first few."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if _is_scored(records, row, token_ids) == 0:
        return
    ids = chunk * chunk_size + tl.arange(0, chunk_size)
    is_known = ids < num_tokens
    x = load_logits(logits, row, stride, ids, num_tokens)
    token = _scored_token(records, row, token_ids)
    own = load_logits(logits, row, stride, tl.maximum(token, 0), num_tokens)
    is_better = is_known & ((x > own) | ((x == own) & (ids < token)))
    largest = tl.max(x)
    place = row * num_chunks + chunk
    tl.store(maxima + place, largest)
    tl.store(sums + place, tl.sum(tl.exp(x.to(tl.float64) - largest.to(tl.float64))))
    tl.store(num_better + place, tl.sum(is_better.to(tl.int32)))
    for index in range(0, num_top):
        best, best_id = _first_best(x, ids)
        tl.store(top_values + place * num_top + index, best)
        tl.store(top_ids + place * num_top + index, best_id)
        x = tl.where(ids == best_id, -float("inf"), x)


@kernel(do_not_specialize=["num_top"])
def _score_rows(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    records: tl.tensor,
    token_ids: tl.tensor,
    num_top: tl.tensor,
    maxima: tl.tensor,
    sums: tl.tensor,
    num_better: tl.tensor,
    chunk_values: tl.tensor,
    chunk_ids: tl.tensor,
    logprobs: tl.tensor,
    ranks: tl.tensor,
    top_ids: tl.tensor,
    top_logprobs: tl.tensor,
    num_chunks: tl.constexpr,
    padded: tl.constexpr,
) -> None:
    """Fill `Scores`, from the rows' chunks."""
    row = tl.program_id(0).to(tl.int64)
    if _is_scored(records, row, token_ids) == 0:
        return
    chunk = tl.arange(0, padded)
    place, is_chunk = row * num_chunks + chunk, chunk < num_chunks
    largest = tl.load(maxima + place, mask=is_chunk, other=-float("inf")).to(tl.float64)
    weights = tl.load(sums + place, mask=is_chunk, other=0.0)
    top = tl.max(largest)
    log_total = tl.log(tl.sum(weights * tl.exp(largest - top)))
    rank = 1 + tl.sum(tl.load(num_better + place, mask=is_chunk, other=0))
    token = _scored_token(records, row, token_ids)
    is_known = (token >= 0) & (token < num_tokens)
    own = load_logits(logits, row, stride, tl.maximum(token, 0), num_tokens).to(tl.float64)
    logprob = tl.maximum(own - top - log_total, _LOWEST).to(tl.float32)
    tl.store(logprobs + row, tl.where(is_known, logprob, _LOWEST))
    tl.store(ranks + row, tl.where(is_known, rank, num_tokens + 1).to(tl.int64))
    index = tl.arange(0, _TOP_PADDED)[None, :]
    places = place[:, None] * num_top + index
    is_place = is_chunk[:, None] & (index < num_top)
    values = tl.load(chunk_values + places, mask=is_place, other=-float("inf"))
    ids = tl.load(chunk_ids + places, mask=is_place, other=_NO_ID)
    for nth in range(0, num_top):
        best, best_id = _first_best(values, ids)
        logprob = tl.maximum(best.to(tl.float64) - top - log_total, _LOWEST).to(tl.float32)
        tl.store(top_ids + row * num_top + nth, best_id.to(tl.int64))
        tl.store(top_logprobs + row * num_top + nth, logprob)
        values = tl.where(ids == best_id, -float("inf"), values)
