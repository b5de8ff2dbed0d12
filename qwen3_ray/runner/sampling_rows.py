"""What is sampled and scored, row by row, as flat arrays that a kernel can read; and the outcome.

A row is one row of logits. In this order, as vLLM documents it: the model's own logits are what
logprobs tell of; the mask (`allowed_token_ids` and grammar), bans (`bad_words`, `min_tokens`),
`logit_bias`, then the repetition, frequency and presence penalties make edited logits of them;
temperature 0 takes the largest of those, the lowest id among equals. Else their weights
`exp(logit / temperature)` are cut by `min_p`, `top_k` and `top_p`, and one of the kept tokens is
drawn. Edited logits are computed in float64 and kept in float32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.sampling_params import SamplingParams

SAMPLE = -1
"""As a row's `token_id`: to be sampled. An id there is only scored."""
SKIP = -2
"""As a row's `token_id`: nobody wants to know, and it comes out as `NOTHING_ALLOWED`."""
NUMERICAL_ERROR = -1
"""Stands for the id of a row whose logits are not all finite."""
NOTHING_ALLOWED = -2
"""Stands for the id of a row whose mask and bans leave no token."""

ROW = np.dtype(
    [
        ("token_id", np.int64),  # to be scored, or SAMPLE, or SKIP
        ("num_top", np.int64),  # how many of the likeliest ids are wanted; -1 for no logprobs
        ("temperature", np.float64),  # 0 takes the largest logit
        ("max_gap", np.float64),  # how far below the largest logit a kept one may be
        ("top_k", np.int64),  # 0 or less keeps all
        ("top_p", np.float64),
        ("seed", np.int64),
        ("position", np.int64),  # absolute, of the token to be sampled
        ("choice", np.int64),
        ("repetition", np.float64),
        ("frequency", np.float64),
        ("presence", np.float64),
        ("is_edited", np.int64),  # whether any of the following, to the end, is set
        ("mask", np.int64),  # index into the masks; -1 for none
        ("bans_start", np.int64),
        ("bans_stop", np.int64),
        ("biases_start", np.int64),
        ("biases_stop", np.int64),
        ("seen_start", np.int64),
        ("seen_stop", np.int64),
    ]
)
_PACKED_ROW = struct.Struct("=qqddqdqqqdddqqqqqqqq")
_NO_EDIT = (0, -1, 0, 0, 0, 0, 0, 0)  # a row's last fields
_NOT_SAMPLED = (0.0, math.inf, 0, 1.0, 0, 0, 0, 1.0, 0.0, 0.0, *_NO_EDIT)
BIAS = np.dtype([("token_id", np.int64), ("bias", np.float64)])
SEEN = np.dtype([("token_id", np.int64), ("num_in_output", np.int64), ("in_prompt", np.int64)])

Records: TypeAlias = NDArray[np.void]
Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]

NO_BIASES: Records = np.empty(0, BIAS)
NOTHING_SEEN: Records = np.empty(0, SEEN)


class RowEdits(NamedTuple):
    """What becomes of one row's logits before a token is drawn."""

    mask: Int32s | None = None
    """[num_words]; bit `i % 32` of word `i // 32` is set where id `i` is allowed."""
    bans: Sequence[int] = ()
    biases: Records = NO_BIASES
    """[num_biases] of `BIAS`."""
    seen: Records = NOTHING_SEEN
    """[num_seen] of `SEEN`, each token once: what the penalties count."""


NO_EDITS = RowEdits()


class SamplingRows(NamedTuple):
    """All rows of a step. A row's bans are `bans[bans_start:bans_stop]`; so with the others."""

    rows: Records
    """[num_rows] of `ROW`."""
    masks: Int32s
    """[num_masks, num_words]."""
    bans: Int64s
    biases: Records
    seen: Records

    @property
    def max_num_top(self) -> int:
        """The most likeliest ids that any row wants."""
        return max(0, int(self.rows["num_top"].max(initial=0)))


class Outcome(NamedTuple):
    """What came of the rows. Without logprobs a row's entries in all but `token_ids` are void."""

    token_ids: Int64s
    """[num_rows]: the sampled or scored id, or `NUMERICAL_ERROR`, or `NOTHING_ALLOWED`."""
    logprobs: NDArray[np.float32]
    """[num_rows]; of an id beyond the known ones the lowest finite number."""
    ranks: Int64s
    """[num_rows], from 1 on; an id beyond the known ones comes after all of them."""
    top_ids: Int64s
    """[num_rows, max_num_top], likeliest first, the lowest id first among equals."""
    top_logprobs: NDArray[np.float32]
    """[num_rows, max_num_top]."""

    @classmethod
    def empty(cls, num_rows: int, num_top: int) -> Outcome:
        """Arrays to be filled."""
        return cls(
            np.empty(num_rows, np.int64),
            np.empty(num_rows, np.float32),
            np.empty(num_rows, np.int64),
            np.empty((num_rows, num_top), np.int64),
            np.empty((num_rows, num_top), np.float32),
        )


class SamplingRowsBuilder:
    """Gathers the rows of a step, in the order of their logits.

    A row that is not edited costs no more than to append its bytes and its position.
    """

    def __init__(self, num_words: int) -> None:
        """`num_words`: of each mask."""
        self.num_words = num_words
        self._rows: list[bytes] = []
        self._positions: list[int] = []
        self._edited: list[int] = []
        self._edits: list[tuple[int, ...]] = []
        self._masks: list[Int32s] = []
        self._bans: list[int] = []
        self._biases: list[Records] = []
        self._seen: list[Records] = []
        self._num_biases = 0
        self._num_seen = 0

    def __len__(self) -> int:
        return len(self._rows)

    def score(self, token_id: int, num_top: int) -> None:
        """Add a row that tells how likely `token_id` was."""
        self._rows.append(_PACKED_ROW.pack(token_id, num_top, *_NOT_SAMPLED))
        self._positions.append(0)

    def skip(self) -> None:
        """Add a row of no interest."""
        self.score(SKIP, -1)

    def sample(self, row: bytes, position: int, edits: RowEdits) -> None:
        """Add a row that samples the token at `position`; `row` is what `packed_row` gave."""
        if edits is not NO_EDITS:
            self._edited.append(len(self._rows))
            self._edits.append(self._add_edits(edits))
        self._rows.append(row)
        self._positions.append(position)

    def _add_edits(self, edits: RowEdits) -> tuple[int, ...]:
        """Fields of a row, from `is_edited` on."""
        mask = -1
        if edits.mask is not None:
            mask = len(self._masks)
            self._masks.append(edits.mask)
        starts = (len(self._bans), self._num_biases, self._num_seen)
        self._bans.extend(edits.bans)
        if edits.biases.size:
            self._biases.append(edits.biases)
            self._num_biases += edits.biases.size
        if edits.seen.size:
            self._seen.append(edits.seen)
            self._num_seen += edits.seen.size
        stops = (len(self._bans), self._num_biases, self._num_seen)
        return (1, mask, starts[0], stops[0], starts[1], stops[1], starts[2], stops[2])

    def build(self) -> SamplingRows:
        """Everything added so far."""
        rows = np.frombuffer(bytearray(b"".join(self._rows)), ROW)
        rows["position"] = self._positions
        if self._edits:
            words = rows.view(np.int64).reshape(len(rows), -1)
            words[self._edited, -len(_NO_EDIT) :] = self._edits
        masks = np.array(self._masks, np.int32) if self._masks else np.empty(0, np.int32)
        return SamplingRows(
            rows=rows,
            masks=masks.reshape(-1, self.num_words),
            bans=np.array(self._bans, np.int64),
            biases=np.concatenate((NO_BIASES, *self._biases)),
            seen=np.concatenate((NOTHING_SEEN, *self._seen)),
        )


def packed_row(request: RequestState) -> bytes:
    """A row that samples for `request`, whose seed must be drawn, at position 0 and without edits.

    What is in it is the same in all steps.
    """
    params = request.params
    return _PACKED_ROW.pack(
        SAMPLE,
        -1 if params.logprobs is None else params.logprobs,
        params.temperature,
        max_gap(params),
        params.top_k,
        params.top_p,
        params.seed or 0,
        0,
        request.choice,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
        *_NO_EDIT,
    )


def max_gap(params: SamplingParams) -> float:
    """`min_p` as a distance of logits: p >= min_p * p_max where logit >= largest - `max_gap`."""
    if params.min_p == 0.0:
        return math.inf
    return -params.temperature * math.log(params.min_p)
