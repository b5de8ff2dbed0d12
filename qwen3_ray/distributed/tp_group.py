"""The tensor-parallel group as a value: rank, size and the only collectives of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from qwen3_ray.errors import ConfigError

_MINIMUM = c10d.AllreduceOptions()
_MINIMUM.reduceOp = c10d.ReduceOp(c10d.ReduceOp.MIN)
_TO_RANK_0 = c10d.GatherOptions()
_TO_RANK_0.rootRank = 0


@dataclass(frozen=True, slots=True)
class TPGroup:
    """Rank, size and collectives of one tensor-parallel group; of one process, all are identities.

    Every rank must call the same collectives in the same order with tensors of the same shape.
    """

    rank: int
    size: int
    process_group: dist.ProcessGroup | None = None
    """None only when `size` is 1."""
    exact: bool = True
    """Sum in rank order, whatever the tensor's size; else as the backend likes."""

    @staticmethod
    def single() -> TPGroup:
        """The group of one process."""
        return TPGroup(0, 1)

    @staticmethod
    def rendezvous(
        store: c10d.Store,
        rank: int,
        size: int,
        *,
        device: torch.device,
        timeout_s: float,
        name: str = "tp",
        exact: bool = True,
    ) -> TPGroup:
        """Meet the other ranks at `store`; blocks until all are there.

        Gloo on CPU, NCCL on CUDA, built on the store directly: no default group exists.
        `name` separates groups that share a store.

        Raises:
            RuntimeError: the others did not come within `timeout_s` seconds.
        """
        if size == 1:
            return TPGroup.single()
        timeout = timedelta(seconds=timeout_s)
        group = build_process_group(c10d.PrefixStore(name, store), rank, size, device, timeout)
        return TPGroup(rank, size, group, exact)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum contiguous `x` over the group, in place, and return it.

        Two addends commute, so the backend's own sum is exact for two ranks. Gloo's ring moves its
        chunk borders with the tensor's size: from three ranks on the order of additions is pinned.
        """
        if self.process_group is None:
            return x
        if self.exact and self.size > 2:
            return _sum_in_rank_order(self.process_group, x, self.size)
        self.process_group.allreduce([x]).wait()
        return x

    def gather(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        """All ranks' `x` in rank order on rank 0, None on the others."""
        if self.process_group is None:
            return [x]
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        self.process_group.gather([parts] if parts else [], [x.contiguous()], _TO_RANK_0).wait()
        return parts or None

    def all_agree(self, mask: torch.Tensor) -> torch.Tensor:
        """Elementwise minimum of an integer `mask` over the group: 1 where every rank says 1."""
        if self.process_group is None:
            return mask
        agreed = mask.clone()
        self.process_group.allreduce([agreed], _MINIMUM).wait()
        return agreed


def build_process_group(
    store: c10d.Store, rank: int, size: int, device: torch.device, timeout: timedelta
) -> dist.ProcessGroup:
    """Gloo for CPU tensors, NCCL for CUDA tensors; on the store itself, no default group."""
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
    return group


def _sum_in_rank_order(group: dist.ProcessGroup, x: torch.Tensor, size: int) -> torch.Tensor:
    parts = [torch.empty_like(x) for _ in range(size)]
    group.allgather([parts], [x]).wait()
    torch.add(parts[0], parts[1], out=x)
    for part in parts[2:]:
        x.add_(part)
    return x
