"""How rank 0 tells the other ranks what to compute: fixed int32 frames."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.collectives import Collectives, connect
from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.errors import EngineError

VERSION = 4
HEADER_SIZE = 8
FRAME_SIZE = 4_096
"""Numbers in a frame's first message. Decodes of 64 requests fit; one message of 16 KiB costs less
than two that are as short as can be."""
_MAX_INT32 = 2**31 - 1

Int32s = NDArray[np.int32]


class Kind(IntEnum):
    """What a frame asks for."""

    STEP = 1
    NOOP = 2
    """Nothing: shows ranks that wait that all is well."""
    STOP = 3
    GRAPH = 4
    """A step that all ranks have captured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArrays:
    """One forward pass: all that a rank must know. int32, sequences in the step's order."""

    input_ids: Int32s
    """[num_tokens]"""
    positions: Int32s
    """[num_tokens]"""
    slot_mapping: Int32s
    """[num_tokens], `block_id * block_size + offset`."""
    query_start_loc: Int32s
    """[num_seqs + 1], first rows of the sequences, then `num_tokens`."""
    seq_lens: Int32s
    """[num_seqs], tokens of each sequence up to and with this step's."""
    block_tables: Int32s
    """[num_seqs, max_blocks], 0 beyond a sequence's own."""
    logits_indices: Int32s
    """[num_logits], the rows whose logits are wanted."""

    @property
    def num_tokens(self) -> int:
        """Rows of the step."""
        return self.input_ids.size

    @property
    def num_logits(self) -> int:
        """Rows whose logits are wanted."""
        return self.logits_indices.size


class GraphOrder(NamedTuple):
    """A captured step, and what must be on the device before it is replayed."""

    graph: int
    """Which one, in the order in which all ranks captured them."""
    num_seqs: int
    """How many sequences `payload` is of; 0 if the device has all that the step needs."""
    payload: Int32s
    """See `runner.step_buffers.StepBuffers.sent`; empty if `num_seqs` is 0."""


_KINDS = frozenset(Kind)
_ARRAYS = tuple(field.name for field in fields(StepArrays))


class _Sizes(NamedTuple):
    """The part of the header that gives the arrays their shapes.

    Of an order, the first three are the graph, the sequences, and the words of its payload.
    """

    num_tokens: int = 0
    num_seqs: int = 0
    max_blocks: int = 0
    num_logits: int = 0

    def lengths(self) -> tuple[int, ...]:
        """Sizes of the arrays of `StepArrays`, in its order."""
        rows, seqs = self.num_tokens, self.num_seqs
        return rows, rows, rows, seqs + 1, seqs, seqs * self.max_blocks, self.num_logits


class StepControl:
    """Rank 0 sends frames, every other rank receives each of them, in order.

    A frame is a header [version, epoch, step, kind, sizes...], for `STEP` all arrays one after the
    other, for `GRAPH` the payload. It comes in a message of `FRAME_SIZE`, and what is left in a
    second one.
    `epoch` names one life of a group and `step` counts its frames, so that a rank that is out of
    step, or a frame of another life, is noticed. Of one rank, everything is a no-op.
    """

    def __init__(self, collectives: Collectives | None, rank: int, size: int) -> None:
        self._collectives = collectives
        self.rank = rank
        self.size = size
        self._epoch = secrets.randbelow(_MAX_INT32) if rank == 0 else -1
        self._step = 0

    @classmethod
    def rendezvous(
        cls, store: c10d.Store, rank: int, size: int, *, device: torch.device, timeout_s: float
    ) -> StepControl:
        """Meet the other ranks at `store`; blocks until all are there.

        A rank that then waits for a frame longer than `timeout_s` seconds raises. Frames go through
        the host's memory or sockets, whatever the `device` that steps run on.

        Raises:
            EngineError: the others did not come in time.
        """
        if size == 1:
            return cls(None, rank, size)
        store = c10d.PrefixStore("control", store)
        with group_errors("the ranks did not meet"):
            collectives = _connect(store, rank, size, device, timeout_s)
        return cls(collectives, rank, size)

    def send(self, kind: Kind, arrays: StepArrays | None = None) -> None:
        """On rank 0: give the other ranks a frame; `arrays` belong to `STEP` alone.

        Raises:
            EngineError: a rank is gone.
        """
        if arrays is None:
            self._send(kind, _Sizes(), [])
        else:
            self._send(kind, _sizes_of(arrays), _parts(arrays))

    def send_order(self, order: GraphOrder) -> None:
        """On rank 0: have the other ranks replay a captured step.

        Raises:
            EngineError: a rank is gone.
        """
        sizes = _Sizes(order.graph, order.num_seqs, order.payload.size)
        self._send(Kind.GRAPH, sizes, [order.payload])

    def _send(self, kind: Kind, sizes: _Sizes, parts: Sequence[Int32s]) -> None:
        if self._collectives is None:
            return
        num_words = HEADER_SIZE + sum(part.size for part in parts)
        frame = np.zeros(max(num_words, FRAME_SIZE), np.int32)
        frame[:HEADER_SIZE] = VERSION, self._epoch, self._step, kind, *sizes
        begin = HEADER_SIZE
        for part in parts:
            frame[begin : begin + part.size] = part.ravel()
            begin += part.size
        self._step = (self._step + 1) & _MAX_INT32
        self._broadcast(frame[:FRAME_SIZE])
        if num_words > FRAME_SIZE:
            self._broadcast(frame[FRAME_SIZE:])

    def receive(self) -> tuple[Kind, StepArrays | GraphOrder | None]:
        """On the other ranks: wait for the next frame, and what comes with its kind.

        Raises:
            EngineError: rank 0 is gone or silent for too long, or the frame is not one that
                follows the last.
        """
        frame = np.empty(FRAME_SIZE, np.int32)
        self._broadcast(frame)
        kind, sizes = self._check(frame[:HEADER_SIZE].tolist())
        if kind not in {Kind.STEP, Kind.GRAPH}:
            return kind, None
        lengths = sizes.lengths() if kind is Kind.STEP else (sizes.max_blocks,)
        num_words = HEADER_SIZE + sum(lengths)
        if num_words > FRAME_SIZE:
            whole = np.empty(num_words, np.int32)
            whole[:FRAME_SIZE] = frame
            self._broadcast(whole[FRAME_SIZE:])
            frame = whole
        if kind is Kind.STEP:
            return kind, _unpack(frame, sizes)
        graph, num_seqs, _, _ = sizes
        return kind, GraphOrder(graph, num_seqs, frame[HEADER_SIZE:num_words])

    def values_of_ranks(self, value: int) -> tuple[int, ...]:
        """All ranks' values, by rank; every rank must call it.

        Raises:
            EngineError: a rank is gone.
        """
        if self._collectives is None:
            return (value,)
        with group_errors():
            values = self._collectives.all_gather(torch.tensor([value]))
        return tuple(int(tensor) for tensor in values)

    def _broadcast(self, values: Int32s) -> None:
        if self._collectives is None:
            raise EngineError("a group of one rank has no frames")
        with group_errors():
            self._collectives.broadcast(torch.from_numpy(values))

    def _check(self, header: list[int]) -> tuple[Kind, _Sizes]:
        version, epoch, step, kind, *sizes = header
        if version != VERSION:
            raise EngineError(f"step frame has version {version}, this rank reads {VERSION}")
        if self._epoch == -1:
            self._epoch = epoch
        if (epoch, step) != (self._epoch, self._step):
            raise EngineError(
                f"step frame {epoch}:{step} came where {self._epoch}:{self._step} was due"
            )
        if kind not in _KINDS or min(sizes) < 0:
            raise EngineError(f"step frame is damaged: {header}")
        self._step = (self._step + 1) & _MAX_INT32
        return Kind(kind), _Sizes(*sizes)


def _connect(
    store: c10d.Store, rank: int, size: int, device: torch.device, timeout_s: float
) -> Collectives:
    host = torch.device("cpu")
    if device.type == "cpu":
        return connect(store, rank, size, device=host, timeout_s=timeout_s)
    # What goes through memory is compiled, which a GPU's ranks need for nothing else.
    return ProcessGroupCollectives.connect(store, rank, size, device=host, timeout_s=timeout_s)


def _parts(arrays: StepArrays) -> list[Int32s]:
    return [getattr(arrays, name) for name in _ARRAYS]


def _sizes_of(arrays: StepArrays) -> _Sizes:
    num_seqs, max_blocks = arrays.block_tables.shape
    return _Sizes(arrays.num_tokens, num_seqs, max_blocks, arrays.num_logits)


def _unpack(frame: Int32s, sizes: _Sizes) -> StepArrays:
    parts = []
    begin = HEADER_SIZE
    for length in sizes.lengths():
        parts.append(frame[begin : begin + length])
        begin += length
    return StepArrays(
        input_ids=parts[0],
        positions=parts[1],
        slot_mapping=parts[2],
        query_start_loc=parts[3],
        seq_lens=parts[4],
        block_tables=parts[5].reshape(sizes.num_seqs, sizes.max_blocks),
        logits_indices=parts[6],
    )


@contextmanager
def group_errors(what: str = "a rank of the group is gone or silent") -> Iterator[None]:
    """Raise EngineError for torch's and gloo's own errors, which are all bare RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"{what}: {error}") from error
