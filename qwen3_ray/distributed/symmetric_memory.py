"""Sums by kernels that read the other GPUs' memory, where GPUs can; NCCL for all else.

A decode step sums tens of tensors of some kilobytes. NCCL takes 20 microseconds and more for one,
a kernel that reads its peers' memory about a third of that.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Protocol

import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.process_group import (
    ProcessGroupCollectives,
    default_environment,
    sum_in_rank_order,
)

logger = logging.getLogger(__name__)

ONE_SHOT_BYTES = 256 * 1024
"""Up to here every GPU reads all parts and adds them up: one exchange."""
TWO_SHOT_BYTES = 8 * 1024 * 1024
"""Up to here each GPU adds up a share and hands it to all: two exchanges, of fewer bytes."""
_ALIGNMENT = 16
_DTYPES = frozenset({torch.bfloat16, torch.float32})
"""What torch's kernels know."""
_ABORT_S = 5.0
_ABORT_POLL_S = 0.001
_EQUAL_ORDINALS = {"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"}
_CHECKED_BYTES = (_ALIGNMENT, 20_480, ONE_SHOT_BYTES, 655_360, TWO_SHOT_BYTES)


class PeerSums(Protocol):
    """Kernels that sum flat `x` over the ranks, in place; `x` is aligned and fits the buffer.

    Unless `adds_in_switch`, in rank order, each sum rounded to the dtype of `x`.
    """

    adds_in_switch: bool
    """Whether `two_shot` lets the switch add, in an order of its own."""

    def one_shot(self, x: torch.Tensor) -> None:
        """Up to `ONE_SHOT_BYTES`."""

    def two_shot(self, x: torch.Tensor) -> None:
        """Up to `TWO_SHOT_BYTES`."""

    def abort(self) -> None:
        """See `Collectives`."""


class SymmetricCollectives:
    """See `Collectives`; errors are RuntimeErrors.

    Which way a sum takes depends on the tensor's size, and its bits do not where it is `exact`:
    both kernels add in rank order and round each sum, as `ProcessGroupCollectives` does with what
    it gathers. `with_peer_sums` has compared the bits on these GPUs.

    Buffers are there from the start, so that sums can be captured in a CUDA graph.
    """

    def __init__(self, collectives: ProcessGroupCollectives, sums: PeerSums) -> None:
        self.exact = collectives.exact
        self.can_capture = True
        self.all_gather = collectives.all_gather
        self.gather = collectives.gather
        self.broadcast = collectives.broadcast
        self._collectives = collectives
        self._sums = sums

    def all_reduce(self, x: torch.Tensor) -> None:
        """See `Collectives`."""
        offset = x.storage_offset() * x.itemsize
        is_aligned = x.nbytes % _ALIGNMENT == 0 and offset % _ALIGNMENT == 0
        if not is_aligned or x.dtype not in _DTYPES or not 0 < x.nbytes <= TWO_SHOT_BYTES:
            self._collectives.all_reduce(x)
        elif x.nbytes <= ONE_SHOT_BYTES:
            self._sums.one_shot(x.view(-1))
        else:
            self._sums.two_shot(x.view(-1))

    def abort(self) -> None:
        """See `Collectives`. NCCL may wait for kernels that the other one lets end."""
        threading.Thread(target=self._collectives.abort, name="nccl-abort", daemon=True).start()
        self._sums.abort()


class TorchPeerSums:
    """See `PeerSums`. By torch's kernels, in one buffer that all GPUs of the group map."""

    def __init__(
        self, group: c10d.ProcessGroup, name: str, device: torch.device, *, exact: bool
    ) -> None:
        """Meet the other ranks, which give the same `name`, new to this process.

        Raises:
            RuntimeError: the GPUs do not map each other's memory.
        """
        # Rendezvous looks the group up by its name; it has a name only if it is given one.
        group._set_group_name(name)  # type: ignore[arg-type]
        c10d._register_process_group(name, group)  # type: ignore[arg-type]
        self._name = name
        self._device = device
        self._buffer = c10d._SymmetricMemory.empty_strided_p2p(
            (TWO_SHOT_BYTES,), (1,), torch.uint8, device
        )
        memory = c10d._SymmetricMemory.rendezvous(self._buffer, name)
        self.adds_in_switch = not exact and memory.multicast_ptr != 0

    def one_shot(self, x: torch.Tensor) -> None:
        """See `PeerSums`.

        Not by torch's kernel that copies `x` by itself: there a warp tells the other GPUs that all
        of a block's part is in the buffer, and does not wait for the block's other warps.
        """
        part = self._part(x).copy_(x)
        torch.ops.symm_mem.one_shot_all_reduce_out(part, "sum", self._name, x)

    def two_shot(self, x: torch.Tensor) -> None:
        """See `PeerSums`."""
        part = self._part(x).copy_(x)
        if self.adds_in_switch:
            torch.ops.symm_mem.multimem_all_reduce_(part, "sum", self._name)
        else:
            torch.ops.symm_mem.two_shot_all_reduce_(part, "sum", self._name)
        x.copy_(part)

    def abort(self) -> None:
        """See `PeerSums`."""
        memory = c10d._SymmetricMemory.rendezvous(self._buffer, self._name)
        pads = [memory.get_signal_pad(r, dtype=torch.int32) for r in range(memory.world_size)]
        stream = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        ends_at = time.monotonic() + _ABORT_S
        with torch.cuda.stream(stream):
            answer_for_others(pads, memory.rank, until=lambda: time.monotonic() > ends_at)

    def _part(self, x: torch.Tensor) -> torch.Tensor:
        return self._buffer[: x.nbytes].view(x.dtype)


def answer_for_others(
    pads: Sequence[torch.Tensor], rank: int, *, until: Callable[[], bool]
) -> None:
    """Let this GPU's kernels end, which wait for signs from ranks that are gone.

    For each block a pad has a word for each rank. A kernel puts a 1 into its own word of every
    pad, once it finds a 0 there, and takes a 1 out of every word of its own pad. Its own word of
    its own pad is both: there the 0 and the 1 take turns.

    Args:
        pads: of all ranks, int32. They are only copied to: nothing must be loaded for that.
    """
    size = len(pads)
    is_own_word = torch.arange(pads[rank].numel()).view(pads[rank].shape) % size == rank
    signs = [torch.where(is_own_word, sign, 1).to(torch.int32) for sign in (0, 1)]
    nothing = torch.zeros_like(signs[0])
    for sign in cycle(signs):
        if until():
            return
        for other, pad in enumerate(pads):
            pad.copy_(sign if other == rank else nothing)
        time.sleep(_ABORT_POLL_S)


class PeerSumsFactory(Protocol):
    """`TorchPeerSums`, or what stands for it."""

    def __call__(
        self, group: c10d.ProcessGroup, name: str, device: torch.device, *, exact: bool
    ) -> PeerSums: ...


def with_peer_sums(
    collectives: ProcessGroupCollectives,
    device: torch.device,
    *,
    make: PeerSumsFactory = TorchPeerSums,
) -> SymmetricCollectives | ProcessGroupCollectives:
    """`collectives` with faster sums if all ranks can, else as they are; every rank must call it.

    The kernels sum known numbers first. Whatever is wrong with them, the group works without.
    """
    number = torch.tensor([secrets.randbelow(2**31)], device=device)
    collectives.broadcast(number)
    ordinals = collectives.all_gather(torch.tensor([device.index or 0], device=device))
    problem = _obstacle(device, collectives.size)
    sums: PeerSums | None = None
    if _all_say(collectives, not problem, device):
        try:
            name = f"qwen3-ray-{int(number)}"
            with default_environment(_rules(collectives, ordinals)):
                sums = make(collectives.group, name, device, exact=collectives.exact)
        except Exception as error:  # of whatever kind: the group does without
            problem = f"{type(error).__name__}: {error}"
        if _all_say(collectives, sums is not None, device) and sums is not None:
            problem = _fault(sums, collectives, device)
            if _all_say(collectives, not problem, device):
                return SymmetricCollectives(collectives, sums)
    reason = problem or "another rank cannot do better"
    logger.warning("GPUs sum through NCCL alone, which is slower in decoding: %s", reason)
    return collectives


def _rules(collectives: ProcessGroupCollectives, ordinals: list[torch.Tensor]) -> dict[str, str]:
    """What torch must be told.

    It refuses devices of one ordinal, which all have where each process sees its own GPU alone;
    that no two ranks share a GPU is known by then, for NCCL would have refused. Told to allow them
    it does without the switch's sums: exact mode wants none.
    """
    are_equal = len({int(ordinal) for ordinal in ordinals}) < collectives.size
    return _EQUAL_ORDINALS if are_equal or collectives.exact else {}


def _obstacle(device: torch.device, size: int) -> str:
    """Why it cannot work, as far as this process can tell without the others."""
    if device.type != "cuda":
        return ""
    if not hasattr(torch.ops.symm_mem, "one_shot_all_reduce_out"):
        return "this torch has no kernels for it"
    for other in range(min(size, torch.cuda.device_count())):
        if other != device.index and not torch.cuda.can_device_access_peer(device, other):
            return f"GPU {device.index} cannot reach the memory of GPU {other}"
    return ""


def _all_say(collectives: ProcessGroupCollectives, fine: bool, device: torch.device) -> bool:
    answers = collectives.all_gather(torch.tensor([int(fine)], device=device))
    return all(int(answer) for answer in answers)


def _fault(sums: PeerSums, collectives: ProcessGroupCollectives, device: torch.device) -> str:
    """What is wrong with sums of known numbers, of every dtype and some sizes."""
    summing = SymmetricCollectives(collectives, sums)
    fault = ""
    for dtype in sorted(_DTYPES, key=str):
        for num_bytes in _CHECKED_BYTES:
            parts = [
                known_numbers(rank, num_bytes // dtype.itemsize, dtype, device)
                for rank in range(collectives.size)
            ]
            x = parts[collectives.rank].clone()
            summing.all_reduce(x)
            sum_in_rank_order(parts, out=parts[0])
            if num_bytes > ONE_SHOT_BYTES and sums.adds_in_switch:
                is_right = torch.allclose(x.float(), parts[0].float(), rtol=0.02, atol=0.1)
            else:
                is_right = torch.equal(x, parts[0])
            if not is_right:  # yet all ranks call all of the sums
                fault = fault or f"a sum of {num_bytes} bytes of {dtype} is wrong"
    return fault


def known_numbers(
    rank: int, num_elements: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The part of `rank` in a sum whose bits show the order of additions; none is near 0."""
    index = torch.arange(num_elements, device=device)
    return (((index * 7919 + rank * 104729) % 1021 + 1.0) / 3 * 1.7**rank).to(dtype)
