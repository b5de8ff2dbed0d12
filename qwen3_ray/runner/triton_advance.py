"""Kernels that write a step's inputs on the device: from what was sent, and from what was sampled.

One program of `_advance` walks all rows, so that it can count turns; `_feed` has one a row.
"""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

import triton.language as tl

from qwen3_ray.gpu.triton_jit import kernel
from qwen3_ray.runner.sampled_ring import NUM_TURNS, SampledRing
from qwen3_ray.runner.step_buffers import StepBuffers

_NUM_TURNS = tl.constexpr(NUM_TURNS)
_BLOCK = 256


def feed(buffers: StepBuffers, ring: SampledRing, num_seqs: int) -> None:
    """Carry out what was sent: fetch sampled ids into `input_ids`, write blocks into tables."""
    fields = buffers.device
    _feed[(num_seqs,)](
        fields.sources,
        fields.input_ids,
        ring.ids,
        fields.first_columns,
        fields.num_columns,
        fields.starts,
        fields.blocks,
        buffers.block_tables,
        buffers.num_blocks,
        buffers.block_tables.stride(0),
        block=_BLOCK,
    )


def advance(buffers: StepBuffers, ring: SampledRing, num_seqs: int, *, decodes: bool) -> None:
    """Take a turn of the ring for the first `num_seqs` of `ring.sampled`.

    If the step was one of decodes, its inputs become those of the next one: the sampled ids, one
    position further. Rows of no sequence (`seq_len` 0) stay as they are. A row whose table has no
    block for its next position gets the slot -1, and needs one before the step can be computed.
    """
    fields = buffers.device
    _advance[(1,)](
        ring.sampled,
        ring.ids,
        ring.turn,
        fields.input_ids,
        fields.positions,
        fields.seq_lens,
        fields.slot_mapping,
        buffers.block_tables,
        buffers.num_blocks,
        num_seqs,
        ring.max_seqs,
        buffers.block_tables.stride(0),
        block_size=buffers.block_size,
        decodes=decodes,
        block=_BLOCK,
    )


@kernel
def _feed(
    sources: tl.tensor,
    input_ids: tl.tensor,
    ring_ids: tl.tensor,
    first_columns: tl.tensor,
    num_columns: tl.tensor,
    starts: tl.tensor,
    blocks: tl.tensor,
    block_tables: tl.tensor,
    num_blocks: tl.tensor,
    table_stride: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    source = tl.load(sources + row)
    sampled = tl.load(ring_ids + source, mask=source >= 0, other=0)
    # Where nothing could be sampled, the request has ended; any id will do.
    tl.store(input_ids + row, tl.maximum(sampled, 0), mask=source >= 0)
    first = tl.load(first_columns + row)
    if first >= 0:
        count = tl.load(num_columns + row)
        start = tl.load(starts + row)
        table = block_tables + row.to(tl.int64) * table_stride + first
        for begin in range(0, count, block):
            columns = begin + tl.arange(0, block)
            block_ids = tl.load(blocks + start + columns, mask=columns < count)
            tl.store(table + columns, block_ids, mask=columns < count)
        tl.store(num_blocks + row, first + count)


@kernel
def _advance(
    sampled: tl.tensor,
    ring_ids: tl.tensor,
    turn: tl.tensor,
    input_ids: tl.tensor,
    positions: tl.tensor,
    seq_lens: tl.tensor,
    slot_mapping: tl.tensor,
    block_tables: tl.tensor,
    num_blocks: tl.tensor,
    num_seqs: tl.tensor,
    max_seqs: tl.tensor,
    table_stride: tl.tensor,
    block_size: tl.constexpr,
    decodes: tl.constexpr,
    block: tl.constexpr,
) -> None:
    # An atomic, since a plain store might come before another warp's load. The mask is right for
    # numbers that have overflowed, too.
    turns = tl.atomic_add(turn, 1)
    target = ring_ids + (turns & (_NUM_TURNS - 1)) * max_seqs
    for begin in range(0, num_seqs, block):
        rows = begin + tl.arange(0, block)
        in_step = rows < num_seqs
        ids = tl.load(sampled + rows, mask=in_step, other=0)
        tl.store(target + rows, ids, mask=in_step)
        if decodes:
            # The token that was sampled has the position that is the sequence's length so far.
            next_positions = tl.load(seq_lens + rows, mask=in_step, other=0)
            is_live = in_step & (next_positions > 0)
            columns = next_positions // block_size
            has_block = is_live & (columns < tl.load(num_blocks + rows, mask=in_step, other=0))
            table = block_tables + rows.to(tl.int64) * table_stride
            block_ids = tl.load(table + columns, mask=has_block, other=0)
            slots = block_ids * block_size + next_positions % block_size
            tl.store(slot_mapping + rows, tl.where(has_block, slots, -1), mask=in_step)
            tl.store(input_ids + rows, tl.maximum(ids, 0), mask=is_live)
            tl.store(positions + rows, next_positions, mask=is_live)
            tl.store(seq_lens + rows, next_positions + 1, mask=is_live)
