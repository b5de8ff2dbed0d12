"""The tensor-parallel group as a value: rank, size and the only collectives of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.collectives import Collectives, connect


@dataclass(frozen=True, slots=True)
class TPGroup:
    """Rank, size and collectives of one tensor-parallel group; of one process, all are identities.

    Every rank must call the same collectives in the same order with tensors of the same shape.
    """

    rank: int
    size: int
    collectives: Collectives | None = None
    """None only when `size` is 1."""

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
        is_staged: bool = False,
    ) -> TPGroup:
        """Meet the other ranks at `store`; blocks until all are there. See `connect`.

        `name` separates groups that share a store. As many threads as torch has share a sum.

        Raises:
            RuntimeError: the others did not come within `timeout_s` seconds.
        """
        if size == 1:
            return TPGroup.single()
        collectives = connect(
            c10d.PrefixStore(name, store),
            rank,
            size,
            device=device,
            timeout_s=timeout_s,
            exact=exact,
            num_threads=torch.get_num_threads(),
            is_staged=is_staged,
        )
        return TPGroup(rank, size, collectives)

    @property
    def exact(self) -> bool:
        """Whether the order of a sum's additions is fixed."""
        return self.collectives is None or self.collectives.exact

    @property
    def can_capture(self) -> bool:
        """Whether CUDA graphs can hold the group's collectives."""
        return self.collectives is None or self.collectives.can_capture

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum contiguous `x` over the group, in place, and return it."""
        if self.collectives is not None:
            self.collectives.all_reduce(x)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """All ranks' `x`, side by side in rank order, on rank 0; None on the others.

        [..., n] -> [..., size * n]
        """
        return x if self.collectives is None else self.collectives.gather(x)

    def abort(self) -> None:
        """From any thread: see `Collectives.abort`."""
        if self.collectives is not None:
            self.collectives.abort()
