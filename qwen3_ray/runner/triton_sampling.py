"""Sampling and scoring of a step's rows by Triton kernels, with all that requests may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from qwen3_ray.runner.device_rows import MAX_ROWS_AT_ONCE, DeviceRows, device_rows
from qwen3_ray.runner.sampling_rows import (
    NOTHING_ALLOWED,
    NUMERICAL_ERROR,
    SAMPLE,
    SKIP,
    Int64s,
    Outcome,
    SamplingRows,
)
from qwen3_ray.runner.triton_choice import METHOD, choose
from qwen3_ray.runner.triton_edits import DeviceBatch
from qwen3_ray.runner.triton_logits import CHUNK
from qwen3_ray.runner.triton_logprobs import score


class TritonSampling:
    """As `reference_sampling.sample`, but for the draws, which are those of `choose`."""

    method = METHOD

    def __init__(self, *, chunk_size: int = CHUNK, max_rows: int = MAX_ROWS_AT_ONCE) -> None:
        """
        Args:
            chunk_size: logits for each program; changes no token.
            max_rows: so many at a time; see `MAX_ROWS_AT_ONCE`.
        """
        self._chunk_size = chunk_size
        self._max_rows = max_rows

    def sample(
        self, logits: torch.Tensor, num_valid_token_ids: int, batch: SamplingRows
    ) -> Outcome:
        """Of the first of the logits' rows and columns, which are contiguous in a row."""
        num_rows = len(batch.rows)
        num_top = min(batch.max_num_top, num_valid_token_ids)
        if num_rows == 0:
            return Outcome.empty(0, num_top)
        on_device = DeviceBatch(batch, logits.device)
        sampled = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
        self._choose(logits, num_valid_token_ids, batch, on_device, sampled)
        if not (batch.rows["num_top"] >= 0).any():
            token_ids = _token_ids(sampled, batch)
            return Outcome.empty(num_rows, 0)._replace(token_ids=token_ids)
        scores = score(
            logits,
            num_valid_token_ids,
            on_device.rows,
            sampled,
            num_top,
            chunk_size=self._chunk_size,
        )
        return Outcome(_token_ids(sampled, batch), *(part.cpu().numpy() for part in scores))

    def _choose(
        self,
        logits: torch.Tensor,
        num_tokens: int,
        batch: SamplingRows,
        on_device: DeviceBatch,
        out: torch.Tensor,
    ) -> None:
        rows = device_rows(batch.rows, logits.device)
        for part in self._parts(len(batch.rows)):
            host_rows = batch.rows[part]
            is_edited = bool(host_rows["is_edited"].any())
            part_logits = logits[part]
            if is_edited:
                part_logits = on_device.edit(logits, num_tokens, part, chunk_size=self._chunk_size)
            choose(
                part_logits,
                DeviceRows(*(column[part] for column in rows)),
                num_tokens,
                out[part],
                may_cut=bool(((host_rows["top_k"] > 0) | (host_rows["top_p"] < 1)).any()),
                is_edited=is_edited,
                chunk_size=self._chunk_size,
            )

    def _parts(self, num_rows: int) -> Iterator[slice]:
        for start in range(0, num_rows, self._max_rows):
            yield slice(start, min(start + self._max_rows, num_rows))


def _token_ids(sampled: torch.Tensor, batch: SamplingRows) -> Int64s:
    """The rows' own ids where they have one; see `Outcome`."""
    given, ids = batch.rows["token_id"], sampled.cpu().numpy().astype(np.int64)
    ids = np.where((given == SAMPLE) | (ids == NUMERICAL_ERROR), ids, given)
    return np.where(given == SKIP, NOTHING_ALLOWED, ids)
