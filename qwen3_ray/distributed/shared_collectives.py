"""Collectives through memory, for the ranks of one machine."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.cpu.numba_sync import CAN_SLEEP
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.numba_lanes import (
    NAP_NS,
    NAP_WORDS,
    ByteRows,
    SharedSum,
    broadcast_bytes,
    gather_bytes,
    lose,
    lost_ranks,
    shared_bytes,
    sum_over_ranks,
    sum_parts,
)
from qwen3_ray.distributed.shared_memory import SharedMemory, Words, meet
from qwen3_ray.errors import EngineError

_MIN_SHARED = 32_768
"""Elements; fewer are summed before a second thread would have begun."""
_LANE = 0
"""Of all but sums, which use as many as they have parts."""


class SharedCollectives:
    """See `Collectives`; sums are in rank order. One thread at a time may call it.

    Raises:
        EngineError: a rank is gone, or silent for too long.
    """

    exact = True
    can_capture = False

    def __init__(self, memory: SharedMemory, shared: SharedSum) -> None:
        self._memory = memory  # keeps it mapped
        self._pool = ThreadPool(shared.num_lanes)
        self._ok = np.zeros(shared.num_lanes, np.bool_)
        self.shared_sum = shared
        """For kernels that sum by themselves."""

    @classmethod
    def connect(
        cls, store: c10d.Store, rank: int, size: int, *, timeout_s: float, num_threads: int = 1
    ) -> SharedCollectives:
        """Meet the other ranks at `store`; blocks until all are there.

        Args:
            num_threads: most that share a sum; rank 0's counts.

        Raises:
            OSError: this system does not do it; then every rank raises it.
            RuntimeError: the others did not come within `timeout_s` seconds.
        """
        if not CAN_SLEEP:
            raise OSError("ranks cannot wake each other on this system")
        if rank == 0:
            store.set("threads", str(num_threads))
        store.wait(["threads"], timedelta(seconds=timeout_s))
        num_lanes = int(store.get("threads"))
        num_bytes = shared_bytes(size, num_lanes)
        memory = meet(store, rank, size, num_bytes, on_end=_lose, timeout_s=timeout_s)
        # Every rank writes the same.
        memory.words[NAP_WORDS] = divmod(NAP_NS, 10**9)
        max_naps = math.ceil(timeout_s * 1e9 / NAP_NS)
        return cls(memory, SharedSum(rank, size, num_lanes, memory.words.ctypes.data, max_naps))

    def all_reduce(self, x: torch.Tensor) -> None:
        """See `Collectives`."""
        if x.dtype != torch.float32:
            parts = self.all_gather(x)
            torch.add(parts[0], parts[1], out=x)
            for part in parts[2:]:
                x.add_(part)
            return
        shared = self.shared_sum
        flat = _contiguous(x).view(-1)
        if flat.numel() < _MIN_SHARED:
            self._check(sum_over_ranks(0, 1, shared, flat.data_ptr(), flat.numel()))
            return
        self._ok.fill(True)
        num_operations = shared.size * flat.numel()
        self._pool.run(sum_parts, num_operations, shared, flat.numpy(), self._ok)
        self._check(bool(self._ok.all()))

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See `Collectives`."""
        x = x.contiguous()
        out = x.new_empty((self.shared_sum.size, *x.shape))
        self._gather(x, out.data_ptr(), x.nbytes)
        return list(out)

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Collectives`."""
        x = x.contiguous()
        *outer, num_columns = x.shape
        if self.shared_sum.rank > 0:
            self._gather(x, 0, x.nbytes)
            return None
        out = x.new_empty((*outer, self.shared_sum.size * num_columns))
        self._gather(x, out.data_ptr(), num_columns * x.itemsize)
        return out

    def broadcast(self, x: torch.Tensor) -> None:
        """See `Collectives`. Rank 0 does not wait until the others have it."""
        address = _contiguous(x).data_ptr()
        self._check(broadcast_bytes(_LANE, self.shared_sum, address, x.nbytes))

    def abort(self) -> None:
        """See `Collectives`: nothing waits on a device."""

    def _gather(self, x: torch.Tensor, out: int, row_bytes: int) -> None:
        rows = ByteRows(x.data_ptr(), x.nbytes, row_bytes, out)
        self._check(gather_bytes(_LANE, self.shared_sum, rows))

    def _check(self, ok: bool) -> None:
        if ok:
            return
        lost = lost_ranks(self.shared_sum.base)
        gone = [f"rank {rank}" for rank in range(self.shared_sum.size) if lost >> rank & 1]
        raise EngineError(f"{', '.join(gone) or 'a rank'} of the group is gone or silent")


def _lose(words: Words, rank: int) -> None:
    lose(words.ctypes.data, rank)


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    if not x.is_contiguous():
        raise ValueError("a collective in place needs a contiguous tensor")
    return x
