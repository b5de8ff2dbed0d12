"""From the scheduler's step to the arrays that the model computes on."""

from __future__ import annotations

import numpy as np

from qwen3_ray.core.step import Step
from qwen3_ray.distributed.control import Int32s, StepArrays
from qwen3_ray.layers.row_plan import RowPlan

__all__ = ["StepArrays", "build"]


def build(step: Step, block_size: int, row_plan: RowPlan) -> StepArrays:
    """Lay out a step that is not empty; its rows and logit rows are padded to `row_plan`."""
    num_tokens = step.num_tokens
    num_rows = row_plan.pad(num_tokens)
    input_ids = np.zeros(num_rows, np.int32)
    positions = np.zeros(num_rows, np.int32)
    slot_mapping = np.full(num_rows, -1, np.int32)
    query_start_loc = np.zeros(len(step.scheduled) + 1, np.int32)
    seq_lens = np.empty(len(step.scheduled), np.int32)
    logits_rows: list[int] = []
    end = 0
    for index, item in enumerate(step.scheduled):
        request = item.request
        first = request.num_computed_tokens
        start, end = end, end + item.num_new_tokens
        stop = first + item.num_new_tokens
        known_end = end - item.num_drafts
        input_ids[start:known_end] = request.token_ids[first : stop - item.num_drafts]
        input_ids[known_end:end] = request.draft_token_ids[: item.num_drafts]
        positions[start:end] = np.arange(first, stop)
        query_start_loc[index + 1] = end
        seq_lens[index] = stop
        logits_rows.extend(position - first + start for position in item.logits_positions)
    block_tables = _block_tables(step, seq_lens, block_size)
    sequence = np.repeat(np.arange(len(step.scheduled)), np.diff(query_start_loc))
    block_index, offset = np.divmod(positions[:num_tokens], block_size)
    slot_mapping[:num_tokens] = block_tables[sequence, block_index] * block_size + offset
    logits_indices = np.zeros(row_plan.pad(len(logits_rows)), np.int32)
    logits_indices[: len(logits_rows)] = logits_rows
    return StepArrays(
        input_ids=input_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=block_tables,
        logits_indices=logits_indices,
        num_tokens=num_tokens,
        num_logits=len(logits_rows),
    )


def _block_tables(step: Step, seq_lens: Int32s, block_size: int) -> Int32s:
    """[num_seqs, blocks of the longest sequence]."""
    num_blocks = -(-seq_lens // block_size)
    tables = np.zeros((len(step.scheduled), int(num_blocks.max())), np.int32)
    for index, item in enumerate(step.scheduled):
        count = num_blocks[index]
        tables[index, :count] = item.request.block_ids[:count]
    return tables
