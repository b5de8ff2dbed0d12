"""For tests and checks, ours and yours: the ranks of a group on one device, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from qwen3_ray.distributed.process_group import sum_in_rank_order
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import EngineError

T = TypeVar("T")


def run_in_turn(
    size: int, body: Callable[[TPGroup], T], *, device: torch.device | None = None
) -> list[T]:
    """Run `body` once for each rank of a group of `size`; returns their results in rank order.

    Ranks are threads, of which one runs at a time: rank 0 up to its first collective, then rank 1
    up to the same one, and so on, then rank 0 goes on with what all gave. Sums are in rank order,
    each rounded to the dtype, as those of exact groups are. So this is a group's arithmetic with
    whatever kernels, on one device, and always in the same order.

    Raises:
        EngineError: ranks did not call the same collectives.
    """
    turns = _Turns(size)

    def run(rank: int) -> T:
        if device is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # threads have a current device each
        with turns.of(rank):
            collectives = RankInTurn(rank, turns) if size > 1 else None
            return body(TPGroup(rank, size, collectives))

    with ThreadPoolExecutor(size) as executor:
        futures = [executor.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, _OthersFailedError):
            raise error
    return [future.result() for future in futures]


class RankInTurn:
    """See `Collectives`, and `run_in_turn`, which makes them."""

    exact = True
    can_capture = False

    def __init__(self, rank: int, turns: _Turns) -> None:
        self._rank = rank
        self._turns = turns

    def all_reduce(self, x: torch.Tensor) -> None:
        """See `Collectives`."""
        parts = self._turns.exchange(self._rank, "all_reduce", x.clone())
        sum_in_rank_order(parts, out=x)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See `Collectives`."""
        return self._turns.exchange(self._rank, "all_gather", x.clone())

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Collectives`."""
        parts = self._turns.exchange(self._rank, "gather", x.clone())
        return torch.cat(parts, dim=-1) if self._rank == 0 else None

    def broadcast(self, x: torch.Tensor) -> None:
        """See `Collectives`."""
        x.copy_(self._turns.exchange(self._rank, "broadcast", x.clone())[0])

    def abort(self) -> None:
        """See `Collectives`: nothing waits on a device."""


class _Part(NamedTuple):
    """What one rank gives to a collective."""

    name: str
    x: torch.Tensor

    @property
    def kind(self) -> tuple[str, tuple[int, ...], torch.dtype]:
        """What must be the same on all ranks."""
        return self.name, tuple(self.x.shape), self.x.dtype


class _OthersFailedError(EngineError):
    """A rank cannot go on because another one failed."""


class _Turns:
    """Whose turn it is, and what the ranks gave to the collective that they are in.

    A rank that comes back from a collective has seen all of the others reach it. It may reach the
    next one before a later rank has read what all gave to this one: so there are two lists.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._has_failed = False
        self._has_ended = [False] * size
        self._gates = [threading.Semaphore(int(rank == 0)) for rank in range(size)]
        self._num_calls = [0] * size
        self._parts: tuple[list[_Part | None], list[_Part | None]] = ([None] * size, [None] * size)

    @contextmanager
    def of(self, rank: int) -> Iterator[None]:
        """From a rank's first turn to its end."""
        self.wait(rank)
        try:
            yield
        except BaseException:
            self.fail()
            raise
        self._has_ended[rank] = True
        self.pass_on(rank)

    def exchange(self, rank: int, name: str, x: torch.Tensor) -> list[torch.Tensor]:
        """Give `x` and get what all ranks give, in rank order."""
        number = self._num_calls[rank]
        self._num_calls[rank] += 1
        parts = self._parts[number % 2]
        parts[rank] = _Part(name, x)
        self.pass_on(rank)
        self.wait(rank)
        given = [part for part in parts if part is not None]
        if len({part.kind for part in given}) > 1 or min(self._num_calls) <= number:
            raise EngineError(f"ranks called different collectives: {[p.kind for p in given]}")
        return [part.x for part in given]

    def wait(self, rank: int) -> None:
        """Until it is this rank's turn."""
        self._gates[rank].acquire()
        if self._has_failed:
            raise _OthersFailedError("another rank failed")

    def pass_on(self, rank: int) -> None:
        """To the next rank that has not ended, if any."""
        for step in range(1, self._size + 1):
            other = (rank + step) % self._size
            if not self._has_ended[other]:
                self._gates[other].release()
                return

    def fail(self) -> None:
        """Let no rank go on."""
        self._has_failed = True
        for gate in self._gates:
            gate.release()


class Call(NamedTuple):
    """A collective that a rank called."""

    name: str
    num_bytes: int
    """Of the tensor that this rank gave."""


@dataclass(slots=True)
class LoneRank:
    """See `Collectives`: one rank of a group whose others are not there.

    What it computes is wrong, for the others' parts are missing. What it costs is right, but for
    the time that collectives take, and `calls` tells what they would move. Can be captured in a
    CUDA graph, where a call is noted once.
    """

    rank: int
    size: int
    exact: bool = True
    can_capture: bool = True
    calls: list[Call] = field(default_factory=list)

    def group(self) -> TPGroup:
        """The group, as this rank sees it."""
        return TPGroup(self.rank, self.size, self)

    def all_reduce(self, x: torch.Tensor) -> None:
        """See `Collectives`. `x` stays as it is."""
        self.calls.append(Call("all_reduce", x.nbytes))

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See `Collectives`. All parts are `x`."""
        self.calls.append(Call("all_gather", x.nbytes))
        return [x] * self.size

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Collectives`. All parts are `x`."""
        self.calls.append(Call("gather", x.nbytes))
        return torch.cat([x] * self.size, dim=-1) if self.rank == 0 else None

    def broadcast(self, x: torch.Tensor) -> None:
        """See `Collectives`. `x` stays as it is."""
        self.calls.append(Call("broadcast", x.nbytes))

    def abort(self) -> None:
        """See `Collectives`: nothing waits for ranks that are not there."""
