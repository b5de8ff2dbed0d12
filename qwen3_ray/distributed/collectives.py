"""What ranks do together, and how they come to do it: through memory, gloo or NCCL."""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.distributed.symmetric_memory import with_peer_sums

logger = logging.getLogger(__name__)


class Collectives(Protocol):
    """Every rank calls the same ones in the same order, with tensors of one shape and dtype.

    Raises:
        EngineError, RuntimeError: a rank is gone, or silent for too long.
    """

    exact: bool
    """Whether a sum's bits depend on the addends alone: the order of additions is fixed."""
    can_capture: bool
    """Whether CUDA graphs can hold them."""

    def all_reduce(self, x: torch.Tensor) -> None:
        """Sum contiguous `x` over the ranks, in place."""

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """All ranks' `x`, in rank order."""

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """All ranks' `x`, side by side in rank order, on rank 0; None on the others.

        [..., n] -> [..., size * n]
        """

    def broadcast(self, x: torch.Tensor) -> None:
        """Overwrite contiguous `x` with that of rank 0."""

    def abort(self) -> None:
        """From any thread: let what waits on a device for ranks that are gone come to an end.

        Its results are wrong, and the group is good for nothing more.
        """


def connect(
    store: c10d.Store,
    rank: int,
    size: int,
    *,
    device: torch.device,
    timeout_s: float,
    exact: bool = True,
    num_threads: int = 1,
    is_staged: bool = False,
) -> Collectives:
    """Meet the other ranks at `store`; blocks until all are there.

    On CPU through memory, and through gloo only where that cannot be had. On CUDA through the
    GPUs' memory where they reach each other's, and NCCL.

    Args:
        timeout_s: how long to wait for a rank, here and in each collective.
        exact: sum in rank order whatever the tensor's size; memory always does.
        num_threads: most that may share a sum; rank 0's counts.
        is_staged: through the host's memory and gloo, as ranks that share a GPU must.

    Raises:
        RuntimeError: the others did not come in time.
    """
    if device.type == "cpu" and not is_staged:
        # Numba takes a second to import; a GPU's ranks do without.
        from qwen3_ray.distributed.shared_collectives import SharedCollectives  # noqa: PLC0415

        try:
            return SharedCollectives.connect(
                store, rank, size, timeout_s=timeout_s, num_threads=num_threads
            )
        except OSError as error:
            logger.warning("ranks speak through sockets, which is slower: %s", error)
    collectives = ProcessGroupCollectives.connect(
        store, rank, size, device=device, timeout_s=timeout_s, exact=exact, is_staged=is_staged
    )
    if device.type == "cpu" or is_staged:
        return collectives
    return with_peer_sums(collectives, device)
