"""The queue of a device's work: what runs when, and what is replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], object]

_HIGH_PRIORITY = -1


class DeviceStream(Protocol):
    """Work is done in the order in which it was queued, perhaps later than the call that did."""

    def run(self, work: Work) -> None:
        """Queue `work`: launches and copies between memories that live as long as the stream."""

    def capture(self, work: Work) -> Work:
        """What queues all of `work`, launches alone, by a single call.

        `work` may be run a few times meanwhile.
        """

    def mark(self) -> Work:
        """What waits until all that was queued before this call is done."""


def copy(stream: DeviceStream, source: torch.Tensor, target: torch.Tensor) -> None:
    """Queue a copy between the device and pinned memory."""
    stream.run(lambda: target.copy_(source, non_blocking=True))


class InlineStream:
    """Work is done as it is queued: for devices without queues."""

    def run(self, work: Work) -> None:
        """See `DeviceStream`."""
        work()

    def capture(self, work: Work) -> Work:
        """See `DeviceStream`."""
        return work

    def mark(self) -> Work:
        """See `DeviceStream`."""
        return _nothing


def _nothing() -> None:
    pass


class CudaStream:
    """The thread's current CUDA stream, which must not be the default one.

    Graphs share one memory pool, since they never run at the same time: capture the largest first.
    """

    _NUM_WARM_UPS = 2

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """See `DeviceStream`."""
        work()

    def capture(self, work: Work) -> Work:
        """See `DeviceStream`."""
        for _ in range(self._NUM_WARM_UPS):  # compiles kernels and makes libraries' workspaces
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        # Other threads of the process may do with CUDA what they like.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def mark(self) -> Work:
        """See `DeviceStream`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event.synchronize


def use_own_stream(device: torch.device) -> DeviceStream:
    """The stream of this thread's work from now on; on CUDA one that goes before all others."""
    if device.type != "cuda":
        return InlineStream()
    stream = torch.cuda.Stream(device, priority=_HIGH_PRIORITY)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    torch.cuda.set_stream(stream)
    return CudaStream()
