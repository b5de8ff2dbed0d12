"""What a device's inputs hold, known on the host: so that only what differs is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.runner.device_rows import narrowed
from qwen3_ray.runner.input_batch import build
from qwen3_ray.runner.sampled_ring import LaunchedRow
from qwen3_ray.runner.sampling_rows import ROW
from qwen3_ray.runner.step_buffers import Array, StepBuffers

_AS_SENT = -1


class DecodeRow(NamedTuple):
    """One token of one request to be computed."""

    request: RequestState
    position: int
    source: int = _AS_SENT
    """Where its id lies on the device (`Launch.source`); -1 if the request knows it."""


class _Held(NamedTuple):
    """What the device's inputs hold of one row."""

    position: int
    source: int
    """Where its input's id came from; -1 if it was sent."""


_EMPTY = _Held(-1, _AS_SENT)


class DeviceStep:
    """Decodes: each request keeps its row while it decodes, and rows have no gaps.

    The device goes on by itself after each step (`triton_advance.advance`). What it holds then is
    known here; if the next step is just that, nothing is sent. Otherwise all fields are, and of
    block tables the blocks that are new.
    """

    def __init__(self, buffers: StepBuffers) -> None:
        self._buffers = buffers
        self._requests: list[RequestState] = []
        self._held: list[_Held] = []
        self._tables: list[list[int]] = []
        """For each row, the blocks that the device's table holds."""

    @property
    def num_seqs(self) -> int:
        """Rows in use."""
        return len(self._requests)

    @property
    def may_cut(self) -> bool:
        """Whether any row has a `top_k` or a `top_p` that leaves tokens out."""
        top_k, top_p = self._buffers.host.top_k, self._buffers.host.top_p
        rows = slice(self.num_seqs)
        return bool(((top_k[rows] > 0) | (top_p[rows] < 1)).any())

    def place(self, rows: Sequence[DecodeRow], samplings: Mapping[RequestState, bytes]) -> bool:
        """Make the step of `rows`, each of another request, what the device computes next.

        Args:
            rows: in any order.
            samplings: of each request, see `sampling_rows.packed_row`.

        Returns:
            Whether anything was sent; then `triton_advance.feed` must come before the step.
        """
        wanted = {row.request: row for row in rows}
        is_changed = wanted.keys() != set(self._requests)
        if is_changed:
            self._reseat(wanted, samplings)
        in_order = [wanted[request] for request in self._requests]
        is_changed |= any(map(self._differs, in_order, self._held, self._tables))
        if is_changed:
            self._send(in_order)
        return is_changed

    def _differs(self, row: DecodeRow, held: _Held, table: Sequence[int]) -> bool:
        return (
            row.position != held.position
            or row.source == _AS_SENT
            or row.source != held.source
            or row.request.block_ids != table
        )

    def _reseat(
        self, wanted: Mapping[RequestState, DecodeRow], samplings: Mapping[RequestState, bytes]
    ) -> None:
        """Give rows to new requests: those of requests that left, or further ones."""
        seated = set(self._requests)
        newcomers = [request for request in wanted if request not in seated]
        holes = [row for row, request in enumerate(self._requests) if request not in wanted]
        for request in newcomers:
            self._seat(request, holes.pop(0) if holes else self.num_seqs, samplings[request])
        while holes:
            hole = holes.pop()  # the last one: what is behind it is in use
            last = self._requests[-1]
            if hole != self.num_seqs - 1:
                self._seat(last, hole, samplings[last])
            for rows in (self._requests, self._held, self._tables):
                rows.pop()

    def _seat(self, request: RequestState, row: int, sampling: bytes) -> None:
        fields = self._buffers.host
        columns = narrowed(np.frombuffer(sampling, ROW))
        fields.temperature[row], fields.max_gap[row], fields.top_k[row] = _scalars(columns[:3])
        fields.top_p[row], fields.seed[row], _, fields.choice[row] = _scalars(columns[3:])
        if row == self.num_seqs:
            self._requests.append(request)
            self._held.append(_EMPTY)
            self._tables.append([])
        else:
            self._requests[row], self._held[row], self._tables[row] = request, _EMPTY, []

    def _send(self, rows: Sequence[DecodeRow]) -> None:
        fields, count = self._buffers.host, len(rows)
        positions = np.array([row.position for row in rows], np.int32)
        fields.positions[:count] = positions
        fields.seq_lens[:count] = positions + 1
        fields.sources[:count] = [row.source for row in rows]
        fields.input_ids[:count] = [
            row.request.token_ids[row.position] if row.source == _AS_SENT else 0 for row in rows
        ]
        size = self._buffers.block_size
        fields.slot_mapping[:count] = positions % size + size * np.array(
            [row.request.block_ids[row.position // size] for row in rows]
        )
        fields.seq_lens[count:] = 0
        fields.slot_mapping[count:] = -1
        fields.temperature[count:] = 0
        fields.query_start_loc[:] = np.minimum(np.arange(self._buffers.max_seqs + 1), count)
        self._buffers.send(self._new_blocks(rows))

    def _new_blocks(self, rows: Sequence[DecodeRow]) -> list[int]:
        """Of all rows, one after the other, and fields that say where they go."""
        fields = self._buffers.host
        blocks: list[int] = []
        fields.first_columns[:] = -1
        for index, row in enumerate(rows):
            table, block_ids = self._tables[index], row.request.block_ids
            if table == block_ids:
                continue
            first = len(table)
            if block_ids[:first] != table:  # they went and came back
                first = 0
            fields.first_columns[index] = first
            fields.num_columns[index] = len(block_ids) - first
            fields.starts[index] = len(blocks)
            blocks += block_ids[first:]
            self._tables[index] = list(block_ids)
        return blocks

    def launched(self) -> dict[RequestState, LaunchedRow]:
        """The step that was placed, once it is queued."""
        size = self._buffers.block_size
        positions = self._buffers.host.positions[: self.num_seqs].tolist()
        return {
            request: LaunchedRow(row, position, request.block_ids[position // size])
            for row, (request, position) in enumerate(zip(self._requests, positions, strict=True))
        }

    def advance(self, first_source: int) -> None:
        """Note that the device went on; row `i`'s next input lies at `first_source + i`."""
        positions = self._buffers.host.positions[: self.num_seqs]
        positions += 1
        self._held = [
            _Held(position, first_source + row) for row, position in enumerate(positions.tolist())
        ]


def place_prompts(
    buffers: StepBuffers, items: Sequence[ScheduledRequest], samplings: Sequence[bytes]
) -> dict[RequestState, LaunchedRow]:
    """Send a step of any numbers of known tokens; `triton_advance.feed` must come before it."""
    size = buffers.block_size
    arrays = build(Step(tuple(items)), size)
    fields, count, num_tokens = buffers.host, len(items), arrays.num_tokens
    fields.input_ids[:num_tokens] = arrays.input_ids
    fields.positions[:num_tokens] = arrays.positions
    fields.slot_mapping[:num_tokens] = arrays.slot_mapping
    fields.slot_mapping[num_tokens:] = -1
    fields.query_start_loc[: count + 1] = arrays.query_start_loc
    fields.query_start_loc[count + 1 :] = num_tokens
    fields.seq_lens[:count] = arrays.seq_lens
    fields.seq_lens[count:] = 0
    fields.logits_indices[:count] = arrays.query_start_loc[1:] - 1
    fields.logits_indices[count:] = 0
    columns = narrowed(np.frombuffer(b"".join(samplings), ROW))
    names = ("temperature", "max_gap", "top_k", "top_p", "seed", "", "choice")
    for name, column in zip(names, columns, strict=True):
        if name:
            getattr(fields, name)[:count] = column
    fields.temperature[count:] = 0
    width = arrays.block_tables.shape[1]
    fields.sources[:] = _AS_SENT
    fields.first_columns[:count] = 0
    fields.first_columns[count:] = -1
    fields.num_columns[:count] = width
    fields.starts[:count] = np.arange(count) * width
    buffers.send(arrays.block_tables.ravel().tolist())
    ends = (arrays.seq_lens - 1).tolist()
    return {
        item.request: LaunchedRow(row, end, item.request.block_ids[end // size])
        for row, (item, end) in enumerate(zip(items, ends, strict=True))
    }


def _scalars(columns: Sequence[Array]) -> list[object]:
    return [column[0] for column in columns]
