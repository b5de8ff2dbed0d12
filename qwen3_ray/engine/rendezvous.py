"""Where the ranks of one engine meet: a file in a private directory of their machine."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.control import StepControl, group_errors
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.progress import LoadProgress, OnProgress
from qwen3_ray.errors import EngineError, ResourcesError

CONNECT_TIMEOUT_S = 180.0
"""How long the first rank waits for the last one's process."""
GROUP_TIMEOUT_S = 300.0
"""How long a rank waits for another in a collective. A dead rank is noticed at once, by its
freed lock, closed connections or ended process; this is for one that hangs, and must cover uneven
loading."""
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Rank `rank` of `size`, and how to find the others.

    `directory` is private to the ranks and used for one start only. `check_peers` is called while
    this rank waits for the others; it raises when one of them will not come.
    """

    rank: int
    size: int
    directory: Path
    check_peers: Callable[[], None] = lambda: None
    may_share_gpus: bool = False
    """Let ranks share a GPU and speak through the host: slow, for proofs on a machine of one."""
    on_group: Callable[[TPGroup], None] = lambda _: None
    """Called with the group once it is there, for who may have to abort it."""

    def connect(
        self, device: torch.device, *, exact: bool, on_progress: OnProgress
    ) -> tuple[TPGroup, StepControl]:
        """Meet the other ranks; blocks until all are there.

        Raises:
            EngineError: a rank did not come in time.
            ResourcesError: ranks share a GPU and may not.
        """
        rank, size = self.rank, self.size
        if size == 1:
            return TPGroup.single(), StepControl(None, 0, 1)
        # One machine, and no listening socket beyond it.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        if device.type == "cuda":
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        store = c10d.FileStore(str(self.directory / "store"), size)
        self._wait_for_all(store, on_progress)
        control = StepControl.rendezvous(
            store, rank, size, device=device, timeout_s=GROUP_TIMEOUT_S
        )
        if device.type == "cuda" and not self.may_share_gpus:
            check_gpus(control.values_of_ranks(_gpu_number(device)))
        with group_errors("the ranks did not meet"):
            tp = TPGroup.rendezvous(
                store,
                rank,
                size,
                device=device,
                timeout_s=GROUP_TIMEOUT_S,
                exact=exact,
                is_staged=self.may_share_gpus,
            )
        self.on_group(tp)
        return tp, control

    def _wait_for_all(self, store: c10d.Store, on_progress: OnProgress) -> None:
        """Wait in Python, where a peer's death can be noticed: torch's rendezvous only waits."""
        store.set(f"here/{self.rank}", "yes")
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        num_here = 0
        while num_here < self.size:
            missing = [rank for rank in range(self.size) if not store.check([f"here/{rank}"])]
            if self.size - len(missing) > num_here:
                num_here = self.size - len(missing)
                on_progress(LoadProgress("connect", num_here, self.size))
            self.check_peers()
            if missing and time.monotonic() > deadline:
                raise EngineError(f"ranks {missing} did not start within {CONNECT_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)


def check_gpus(numbers: Sequence[int]) -> None:
    """Raise ResourcesError if two ranks have a GPU of the same number: NCCL refuses that."""
    for rank, number in enumerate(numbers):
        other = numbers.index(number)
        if other < rank:
            raise ResourcesError(
                "tensor_parallel_size",
                len(numbers),
                f"needs as many GPUs, but ranks {other} and {rank} have the same one",
            )


def _gpu_number(device: torch.device) -> int:
    """Names a GPU, whichever of them this process sees."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return int.from_bytes(hashlib.blake2b(uuid.encode(), digest_size=7).digest(), "little")
