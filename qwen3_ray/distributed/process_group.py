"""Collectives by torch: gloo on CPU, NCCL on CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.numbered_store import NumberedStore
from qwen3_ray.errors import ConfigError

_FROM_RANK_0 = c10d.BroadcastOptions()
_FROM_RANK_0.rootRank = 0
_TO_RANK_0 = c10d.GatherOptions()
_TO_RANK_0.rootRank = 0
_NEVER_KILL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}
"""Torch's watchdog ends a process whose collective takes too long, or whose GPU has failed. That is
right for other ranks, whose end is noticed; rank 0 may live in a user's process."""


class ProcessGroupCollectives:
    """See `Collectives`. Errors are RuntimeErrors.

    Staged, tensors of any device go through the host's memory and gloo: slow, and the only way for
    ranks that share one GPU, which NCCL refuses.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        exact: bool,
        is_staged: bool = False,
        store: c10d.Store | None = None,
    ) -> None:
        """`store`: the group's, which is kept for it."""
        self.group = group
        self._store = store
        self.rank = group.rank()
        self.size = group.size()
        self.exact = exact or self.size == 2
        """See `Collectives`. Two addends commute."""
        self.can_capture = not is_staged
        self._is_staged = is_staged

    @classmethod
    def connect(
        cls,
        store: c10d.Store,
        rank: int,
        size: int,
        *,
        device: torch.device,
        timeout_s: float,
        exact: bool = True,
        is_staged: bool = False,
    ) -> ProcessGroupCollectives:
        """Meet the other ranks, on the store itself: no default group exists.

        Raises:
            RuntimeError: the others did not come within `timeout_s` seconds.
        """
        timeout = timedelta(seconds=timeout_s)
        group_store = NumberedStore(store)
        group = dist.ProcessGroup(group_store, rank, size)
        if device.type == "cpu" or is_staged:
            device = torch.device("cpu")
            kind = dist.ProcessGroup.BackendType.GLOO
            backend: c10d.Backend = c10d.ProcessGroupGloo(store, rank, size, timeout)
        else:
            if not dist.is_nccl_available():
                raise ConfigError("device", device.type, "this torch was built without NCCL")
            options = c10d.ProcessGroupNCCL.Options()
            options._timeout = timeout
            options.global_ranks_in_group = list(range(size))  # torch knows of a first group alone
            kind = dist.ProcessGroup.BackendType.NCCL
            with default_environment(_NEVER_KILL if rank == 0 else {}):
                backend = c10d.ProcessGroupNCCL(store, rank, size, options)
        group._set_default_backend(kind)
        group._register_backend(device, kind, backend)
        return cls(group, exact=exact, is_staged=is_staged, store=group_store)

    def all_reduce(self, x: torch.Tensor) -> None:
        """See `Collectives`.

        Gloo's ring moves its chunk borders, and with them the order of additions, with the tensor's
        size: from three ranks on it is pinned, where that is wanted.
        """
        if self.exact and self.size > 2:
            sum_in_rank_order(self.all_gather(x), out=x)
            return
        staged = self._stage(x)
        self.group.allreduce([staged]).wait()
        _put_back(staged, x)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See `Collectives`."""
        staged = self._stage(x.contiguous())
        parts = [torch.empty_like(staged) for _ in range(self.size)]
        self.group.allgather([parts], [staged]).wait()
        return [part.to(x.device) for part in parts]

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Collectives`."""
        staged = self._stage(x.contiguous())
        parts = [torch.empty_like(staged) for _ in range(self.size)] if self.rank == 0 else []
        self.group.gather([parts] if parts else [], [staged], _TO_RANK_0).wait()
        return torch.cat(parts, dim=-1).to(x.device) if parts else None

    def broadcast(self, x: torch.Tensor) -> None:
        """See `Collectives`."""
        staged = self._stage(x)
        self.group.broadcast([staged], _FROM_RANK_0).wait()
        _put_back(staged, x)

    def abort(self) -> None:
        """See `Collectives`; gloo's calls end by themselves, NCCL's only so."""
        self.group.abort()

    def _stage(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, or a copy of it on the host, where gloo takes it from."""
        if not self._is_staged:
            return x
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x)


@contextmanager
def default_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what reads them meanwhile; those that are set stay as they are."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def sum_in_rank_order(parts: list[torch.Tensor], *, out: torch.Tensor) -> None:
    """Add up at least two parts, the first two first, each sum rounded to the parts' dtype."""
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out.add_(part)


def _put_back(staged: torch.Tensor, x: torch.Tensor) -> None:
    if staged is not x:
        x.copy_(staged)
