"""From the scheduler's step to the arrays that the model computes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.control import Int32s, StepArrays
from qwen3_ray.errors import EngineError

__all__ = ["StepArrays", "build"]


def build(step: Step, block_size: int) -> StepArrays:
    """Lay out a step that is not empty.

    Python works once on each request, numpy on each token: a decode step of 256 requests is laid
    out in less than a millisecond.

    Raises:
        EngineError: a request has too few blocks for its tokens.
    """
    scheduled = step.scheduled
    first = np.array([item.request.num_computed_tokens for item in scheduled])
    counts = np.array([item.num_new_tokens for item in scheduled])
    ends = np.cumsum(counts)
    positions = _ranges(first, counts)
    query_start_loc = np.zeros(len(scheduled) + 1, np.int32)
    query_start_loc[1:] = ends
    seq_lens = (first + counts).astype(np.int32)
    block_tables = _block_tables(scheduled, -(-seq_lens // block_size))
    sequence = np.repeat(np.arange(len(scheduled)), counts)
    block_index, offset = np.divmod(positions, block_size)
    slot_mapping = block_tables[sequence, block_index] * block_size + offset
    return StepArrays(
        input_ids=np.array(_token_ids(scheduled), np.int32),
        positions=positions.astype(np.int32),
        slot_mapping=slot_mapping.astype(np.int32),
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=block_tables,
        logits_indices=_logits_rows(scheduled, first, ends).astype(np.int32),
    )


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`range(start, start + count)` of each pair, one after the other."""
    ends = np.cumsum(counts)
    values: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
    return values


def _token_ids(scheduled: Sequence[ScheduledRequest]) -> list[int]:
    """Of every row: known tokens, then drafts."""
    token_ids: list[int] = []
    for request, num_new_tokens, num_drafts in scheduled:
        first = request.num_computed_tokens
        token_ids += request.token_ids[first : first + num_new_tokens - num_drafts]
        if num_drafts:
            token_ids += request.draft_token_ids[:num_drafts]
    return token_ids


def _logits_rows(
    scheduled: Sequence[ScheduledRequest], first: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows of the step whose logits are wanted: of each item for prompt logprobs, then sampled."""
    num_sampled = np.array([item.num_sampled_rows for item in scheduled])
    spans = np.zeros((len(scheduled), 2, 2), np.int64)  # item; prompt or sampled; start and count
    spans[:, 1] = np.stack((ends - num_sampled, num_sampled), axis=1)
    for index, item in enumerate(scheduled):
        if item.request.params.prompt_logprobs is not None:
            positions = item.prompt_logprob_rows
            start = int(ends[index]) - item.num_new_tokens
            spans[index, 0] = start + positions.start - first[index], len(positions)
    return _ranges(spans[:, :, 0].ravel(), spans[:, :, 1].ravel())


def _block_tables(scheduled: Sequence[ScheduledRequest], num_blocks: Int32s) -> Int32s:
    """[num_seqs, most of num_blocks]: each sequence's first `num_blocks`, then zeros."""
    block_ids: list[int] = []
    for item, count in zip(scheduled, num_blocks.tolist(), strict=True):
        block_ids += item.request.block_ids[:count]
    if len(block_ids) != num_blocks.sum():
        raise EngineError("a step holds a request with fewer KV blocks than its tokens need")
    tables = np.zeros((len(scheduled), int(num_blocks.max())), np.int32)
    tables[np.arange(tables.shape[1]) < num_blocks[:, None]] = block_ids
    return tables
