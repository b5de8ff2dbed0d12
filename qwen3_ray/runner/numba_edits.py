"""A row's logits after its mask, bans, bias and penalties; see `sampling_rows` for their order."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.runner.numba_logits import LOWEST
from qwen3_ray.runner.sampling_rows import SamplingRows

Floats = NDArray[np.floating]
Int32s = NDArray[np.int32]

_WORD_BITS = 32
_BANNED = np.float32(-np.inf)
_ONE = np.int32(1)


@callee
def edit(logits: Floats, row: np.void, batch: SamplingRows, out: Floats) -> None:
    """Fill `out` with the edited `logits` of a row of `batch`.

    Ids beyond the logits are passed over; what is banned becomes minus infinity, all else stays
    finite.
    """
    bans, biases, seen = batch.bans, batch.biases, batch.seen
    if row["mask"] >= 0:
        _mask(logits, batch.masks[row["mask"]], out)
    else:
        for i in range(out.size):  # a slice assignment would compile for seconds
            out[i] = logits[i]
    for i in range(row["bans_start"], row["bans_stop"]):
        if bans[i] < out.size:
            out[bans[i]] = _BANNED
    for i in range(row["biases_start"], row["biases_stop"]):
        token_id = biases[i]["token_id"]
        if token_id < out.size:
            out[token_id] = _clamp(np.float64(out[token_id]) + biases[i]["bias"])
    for i in range(row["seen_start"], row["seen_stop"]):
        token_id = seen[i]["token_id"]
        if token_id < out.size:
            out[token_id] = _penalise(np.float64(out[token_id]), row, seen[i])


@callee
def _mask(logits: Floats, mask: Int32s, out: Floats) -> None:
    """Copy what the mask allows; the rest becomes minus infinity."""
    for word in range((logits.size + _WORD_BITS - 1) // _WORD_BITS):
        start, stop = word * _WORD_BITS, min((word + 1) * _WORD_BITS, logits.size)
        _mask_word(logits[start:stop], mask[word], out[start:stop])


@callee
def _mask_word(logits: Floats, word: np.int32, out: Floats) -> None:
    for i in range(logits.size):
        out[i] = logits[i] if (word >> np.int32(i)) & _ONE else _BANNED


@callee
def _penalise(logit: float, row: np.void, token: np.void) -> float:
    count = token["num_in_output"]
    if count > 0 or token["in_prompt"]:
        factor = row["repetition"]
        logit = logit / factor if logit > 0.0 else logit * factor
    logit -= row["frequency"] * count
    return _clamp(logit - row["presence"] if count > 0 else logit)


@callee
def _clamp(logit: float) -> float:
    """Keep a logit in float32's range, unless it is banned: only bans may be infinite."""
    return min(max(logit, LOWEST), -LOWEST) if logit > -math.inf else logit
