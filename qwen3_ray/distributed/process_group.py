"""Collectives by torch: gloo on CPU, NCCL on CUDA."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from qwen3_ray.errors import ConfigError

_FROM_RANK_0 = c10d.BroadcastOptions()
_FROM_RANK_0.rootRank = 0
_TO_RANK_0 = c10d.GatherOptions()
_TO_RANK_0.rootRank = 0


class ProcessGroupCollectives:
    """See `Collectives`. Errors are RuntimeErrors."""

    def __init__(self, group: dist.ProcessGroup, *, exact: bool) -> None:
        self._group = group
        self._rank = group.rank()
        self._size = group.size()
        self.exact = exact or self._size == 2
        """See `Collectives`. Two addends commute."""

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
    ) -> ProcessGroupCollectives:
        """Meet the other ranks, on the store itself: no default group exists.

        Raises:
            RuntimeError: the others did not come within `timeout_s` seconds.
        """
        timeout = timedelta(seconds=timeout_s)
        group = dist.ProcessGroup(store, rank, size)
        if device.type == "cpu":
            kind = dist.ProcessGroup.BackendType.GLOO
            backend: c10d.Backend = c10d.ProcessGroupGloo(store, rank, size, timeout)
        else:
            if not dist.is_nccl_available():
                raise ConfigError("device", device.type, "this torch was built without NCCL")
            options = c10d.ProcessGroupNCCL.Options()
            options._timeout = timeout
            kind = dist.ProcessGroup.BackendType.NCCL
            backend = c10d.ProcessGroupNCCL(store, rank, size, options)
        group._set_default_backend(kind)
        group._register_backend(device, kind, backend)
        return cls(group, exact=exact)

    def all_reduce(self, x: torch.Tensor) -> None:
        """See `Collectives`.

        Gloo's ring moves its chunk borders, and with them the order of additions, with the tensor's
        size: from three ranks on it is pinned, where that is wanted.
        """
        if self.exact and self._size > 2:
            parts = self.all_gather(x)
            torch.add(parts[0], parts[1], out=x)
            for part in parts[2:]:
                x.add_(part)
            return
        self._group.allreduce([x]).wait()

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See `Collectives`."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self._size)]
        self._group.allgather([parts], [x]).wait()
        return parts

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Collectives`."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self._size)] if self._rank == 0 else []
        self._group.gather([parts] if parts else [], [x], _TO_RANK_0).wait()
        return torch.cat(parts, dim=-1) if parts else None

    def broadcast(self, x: torch.Tensor) -> None:
        """See `Collectives`."""
        self._group.broadcast([x], _FROM_RANK_0).wait()
