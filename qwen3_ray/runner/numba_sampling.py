"""Sampling on CPU: a few passes over each row, shared out to threads; no sort, no row sees another.

Every step of a row does no more than its parameters need: the largest logit alone for temperature
0; where nothing is cut, float32 weights summed block by block in the same pass, for the drawn block
alone in float64; weights summed where nothing but `min_p` cuts; else only the candidates, which
are the tokens above a bound that is cheap to know. All these weights, and sums, are float64.

Kernels are spread over the `numba_*` files: the name of their cache's folder follows all of them.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.runner.numba_cuts import keep_top_k, keep_top_p, top_k_cut
from qwen3_ray.runner.numba_edits import edit
from qwen3_ray.runner.numba_logits import (
    BLOCK_SIZE,
    LOG2_E,
    LOWEST,
    count_before,
    exp2,
    first_of,
    gather,
    level_sums,
    scan,
    sum_weights,
)
from qwen3_ray.runner.numba_philox import uniform
from qwen3_ray.runner.numba_scratch import Scratch, make_scratch
from qwen3_ray.runner.sampling_rows import (
    NOTHING_ALLOWED,
    NUMERICAL_ERROR,
    SAMPLE,
    SKIP,
    Int64s,
    Outcome,
    SamplingRows,
)

Floats = NDArray[np.floating]

_MAX_SCALE = 1e300  # times any distance of two float32s it is no NaN


@callee
def _largest(maxima: Floats) -> float:
    largest = maxima[0]
    for i in range(maxima.size):
        largest = max(largest, maxima[i])
    return np.float64(largest)


@callee
def _draw(
    logits: Floats, sums: Floats, target: float, largest: float, scale: float, floor: float
) -> int:
    """First id at which the running sum of weights of logits >= `floor` exceeds `target`.

    The sum runs over blocks first, whose sums are given, then within one.
    """
    # Where rounding leaves the target at the total, the last token with a weight is taken.
    before, running, chosen = 0.0, 0.0, 0
    for block in range(sums.size):
        if sums[block] > 0.0:
            before, chosen = running, block
            running += sums[block]
            if running > target:
                break
    start = chosen * BLOCK_SIZE
    last = start
    for i in range(start, min(start + BLOCK_SIZE, logits.size)):
        logit = np.float64(logits[i])
        weight = exp2((logit - largest) * scale) if logit >= floor else 0.0
        if weight > 0.0:
            before += weight
            last = i
            if before > target:
                break
    return last


@callee
def _scale(row: np.void) -> float:
    """What a distance of logits is multiplied by to be a power of 2; 0 at temperature 0."""
    if row["temperature"] == 0.0:
        return 0.0
    return min(LOG2_E / np.float64(row["temperature"]), _MAX_SCALE)


@callee
def _is_cut(row: np.void) -> bool:
    """Whether some tokens may not be drawn."""
    return bool(row["max_gap"] < math.inf or row["top_k"] > 0 or row["top_p"] < 1.0)


@callee
def _choose(logits: Floats, scratch: Scratch, row: np.void) -> int:
    """Sample from edited logits, of whose scan the blocks' maxima and sums are in `scratch`."""
    largest = _largest(scratch.maxima)
    if largest < LOWEST:
        return NOTHING_ALLOWED
    if row["temperature"] == 0.0:
        return first_of(logits, scratch.maxima, np.float32(largest))
    scale, sums = _scale(row), scratch.scan_sums
    if not _is_cut(row):
        floor = LOWEST
        total = level_sums(scratch.maxima, largest, scale, sums)
    else:
        floor, sums = max(LOWEST, largest - row["max_gap"]), scratch.sums
        if row["top_k"] > 0:
            logits, floor = keep_top_k(logits, scratch, largest, floor, row["top_k"])
        if row["top_p"] < 1.0:
            logits, floor = keep_top_p(logits, scratch, largest, scale, floor, row["top_p"])
        total = sum_weights(logits, scratch.maxima, largest, scale, floor, sums)
    target = uniform(row["seed"], row["position"], row["choice"]) * total
    return _draw(logits, sums, target, largest, scale, floor)


@callee
def _log_total(logits: Floats, scratch: Scratch) -> float:
    """The logarithm of the sum of exp(logit)."""
    largest = _largest(scratch.maxima)
    weights = sum_weights(logits, scratch.maxima, largest, LOG2_E, LOWEST, scratch.sums)
    return largest + math.log(weights)


@callee
def _list_top(
    logits: Floats, scratch: Scratch, log_total: float, num_top: int, ids: Int64s, logprobs: Floats
) -> None:
    """Fill the first `num_top` of `ids` and `logprobs`, or as many as there are logits."""
    num_top = min(num_top, logits.size)
    if num_top == 0:
        return
    floor = LOWEST
    if num_top < scratch.maxima.size:
        floor = np.float64(top_k_cut(scratch.maxima, num_top)[0])
    count = gather(logits, scratch.maxima, floor, scratch.ids, scratch.values)
    values = scratch.values[:count]
    cut, num_equal = top_k_cut(values, num_top)
    size = 0
    for i in range(count):
        num_equal -= values[i] == cut
        if values[i] > cut or (values[i] == cut and num_equal >= 0):
            place = size  # an insertion sort: equals stay in id order
            while place > 0 and logits[ids[place - 1]] < values[i]:
                ids[place] = ids[place - 1]
                place -= 1
            ids[place] = scratch.ids[i]
            size += 1
    for i in range(size):
        logprobs[i] = _logprob(logits[ids[i]], log_total)


@callee
def _logprob(logit: np.float32, log_total: float) -> float:
    return max(np.float64(logit) - log_total, LOWEST)


@njit(cache=True, nogil=True)
def sample_rows(
    part: int,
    num_parts: int,
    logits: Floats,
    num_valid_token_ids: int,
    order: Int64s,
    batch: SamplingRows,
    outcome: Outcome,
) -> None:
    """Sample or score one id for each row of part `part` of `num_parts`.

    Args:
        part: from 0 on; for `ThreadPool.run`.
        num_parts: parts in all, one a thread.
        logits: [at least num_rows, vocab_size], float32, contiguous.
        num_valid_token_ids: ids from here on are never looked at.
        order: [num_rows], the rows in the order in which the parts take turns at them.
        batch: what to do.
        outcome: written.
    """
    scratch = make_scratch(num_valid_token_ids)
    for turn in range(part, order.size, num_parts):
        index = order[turn]
        row, raw = batch.rows[index], logits[index, :num_valid_token_ids]
        if row["token_id"] == SKIP:
            outcome.token_ids[index] = NOTHING_ALLOWED
            continue
        scale = 0.0 if _is_cut(row) else _scale(row)
        is_edited = row["is_edited"] != 0
        if not scan(raw, scratch.maxima, 0.0 if is_edited else scale, scratch.scan_sums):
            outcome.token_ids[index] = NUMERICAL_ERROR
            continue
        log_total = 0.0
        if row["num_top"] >= 0:
            log_total = _log_total(raw, scratch)
            ids, logprobs = outcome.top_ids[index], outcome.top_logprobs[index]
            _list_top(raw, scratch, log_total, row["num_top"], ids, logprobs)
        token_id = row["token_id"]
        if token_id == SAMPLE:
            edited = raw
            if is_edited:
                edited = scratch.edited
                edit(raw, row, batch, edited)
                scan(edited, scratch.maxima, scale, scratch.scan_sums)
            token_id = _choose(edited, scratch, row)
        outcome.token_ids[index] = token_id
        if row["num_top"] >= 0 and 0 <= token_id < raw.size:
            outcome.ranks[index] = 1 + count_before(raw, token_id)
            outcome.logprobs[index] = _logprob(raw[token_id], log_total)
        else:
            outcome.ranks[index], outcome.logprobs[index] = raw.size + 1, LOWEST
