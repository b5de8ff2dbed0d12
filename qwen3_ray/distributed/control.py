"""How rank 0 tells the other ranks what to compute: fixed int32 frames."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.collectives import Collectives, connect
from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.errors import EngineError

VERSION = 2
HEADER_SIZE = 8
_MAX_INT32 = 2**31 - 1

Int32s = NDArray[np.int32]


class Kind(IntEnum):
    """What a frame asks for."""

    STEP = 1
    NOOP = 2
    """Nothing: shows ranks that wait that all is well."""
    STOP = 3


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


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The part of the header that gives the payload its shape."""

    num_tokens: int
    num_seqs: int
    max_blocks: int
    num_logits: int

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays of `StepArrays`, in its order."""
        rows = (self.num_tokens,)
        return (
            rows,
            rows,
            rows,
            (self.num_seqs + 1,),
            (self.num_seqs,),
            (self.num_seqs, self.max_blocks),
            (self.num_logits,),
        )


class StepControl:
    """Rank 0 sends frames, every other rank receives each of them, in order.

    A frame is a header [version, epoch, step, kind, sizes...] and for `STEP` one flat payload.
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
        if self._collectives is None:
            return
        header = np.zeros(HEADER_SIZE, np.int32)
        header[:4] = VERSION, self._epoch, self._step, kind
        if arrays is not None:
            header[4:] = _sizes_of(arrays)
        self._step = (self._step + 1) & _MAX_INT32
        self._broadcast(header)
        if arrays is not None:
            self._broadcast(np.concatenate([part.ravel() for part in _parts(arrays)]))

    def receive(self) -> tuple[Kind, StepArrays | None]:
        """On the other ranks: wait for the next frame.

        Raises:
            EngineError: rank 0 is gone or silent for too long, or the frame is not one that
                follows the last.
        """
        header = np.zeros(HEADER_SIZE, np.int32)
        self._broadcast(header)
        kind = self._check(header)
        if kind is not Kind.STEP:
            return kind, None
        shapes = _Sizes(*(int(size) for size in header[4:])).shapes()
        payload = np.empty(sum(int(np.prod(shape)) for shape in shapes), np.int32)
        self._broadcast(payload)
        return kind, _unpack(payload, shapes)

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

    def _check(self, header: Int32s) -> Kind:
        version, epoch, step, kind = (int(word) for word in header[:4])
        if version != VERSION:
            raise EngineError(f"step frame has version {version}, this rank reads {VERSION}")
        if self._epoch == -1:
            self._epoch = epoch
        if (epoch, step) != (self._epoch, self._step):
            raise EngineError(
                f"step frame {epoch}:{step} came where {self._epoch}:{self._step} was due"
            )
        if kind not in tuple(Kind) or (header[4:] < 0).any():
            raise EngineError(f"step frame is damaged: {header.tolist()}")
        self._step = (self._step + 1) & _MAX_INT32
        return Kind(kind)


def _connect(
    store: c10d.Store, rank: int, size: int, device: torch.device, timeout_s: float
) -> Collectives:
    host = torch.device("cpu")
    if device.type == "cpu":
        return connect(store, rank, size, device=host, timeout_s=timeout_s)
    # What goes through memory is compiled, which a GPU's ranks need for nothing else.
    return ProcessGroupCollectives.connect(store, rank, size, device=host, timeout_s=timeout_s)


def _parts(arrays: StepArrays) -> list[Int32s]:
    return [getattr(arrays, field.name) for field in fields(StepArrays)]


def _sizes_of(arrays: StepArrays) -> tuple[int, ...]:
    num_seqs, max_blocks = arrays.block_tables.shape
    return arrays.num_tokens, num_seqs, max_blocks, arrays.num_logits


def _unpack(payload: Int32s, shapes: tuple[tuple[int, ...], ...]) -> StepArrays:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = [
        part.reshape(shape)
        for part, shape in zip(np.split(payload, ends[:-1]), shapes, strict=True)
    ]
    return StepArrays(
        input_ids=parts[0],
        positions=parts[1],
        slot_mapping=parts[2],
        query_start_loc=parts[3],
        seq_lens=parts[4],
        block_tables=parts[5],
        logits_indices=parts[6],
    )


@contextmanager
def group_errors(what: str = "a rank of the group is gone or silent") -> Iterator[None]:
    """Raise EngineError for torch's and gloo's own errors, which are all bare RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"{what}: {error}") from error
