"""A stream on which work is captured as on CUDA, in what can be told without a GPU.

What is captured must not wait for the device, must not bring anything from the host, and must read
no memory but what it has made itself or what outlives it. A replay repeats operators and kernels on
the same memory; what the host computed meanwhile stays as it was.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from qwen3_ray.runner.device_stream import InlineStream, Work

_aten = torch.ops.aten
_WAITING = {
    _aten._local_scalar_dense, _aten.is_nonzero, _aten.equal, _aten.nonzero, _aten.bincount,
    _aten.masked_select, _aten.unique_dim, _aten._unique2, _aten.repeat_interleave,
    _aten.lift_fresh,
}  # fmt: skip
"""The last one is of `torch.tensor` and `torch.from_numpy`: what they give is on the host."""
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_}
_TO_THE_HOST = (
    "tolist", "numpy", "item", "cpu", "pin_memory", "__int__", "__float__", "__index__", "__bool__",
)  # fmt: skip
"""In inference mode torch has no operator for some of them."""


class NotCapturableError(AssertionError):
    """What CUDA would have refused, or what a replay would have read from freed memory."""


class _Watch(TorchDispatchMode):
    """Sees operators and kernels; knows which memory was there before them."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, StorageWeakRef] = {}
        self.done: list[Work] = []
        self._made: dict[int, StorageWeakRef] = {}

    def note_read(self, values: object) -> None:
        for storage in _storages(values):
            if storage.cdata not in self._made:
                self.read[storage.cdata] = storage

    def __torch_dispatch__(
        self,
        func: OpOverload,
        _types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        given = (args, kwargs or {})
        packet = func.overloadpacket
        if packet in _WAITING or (packet in _INDEXING and _has_masks(args[1])):
            raise NotCapturableError(str(func))
        self.note_read(given)
        out = func(*args, **(kwargs or {}))
        known = {storage.cdata for storage in _storages(given)}
        made = [storage for storage in _storages(out) if storage.cdata not in known]
        self._made |= {storage.cdata: storage for storage in made}

        def repeat() -> None:
            again = func(*args, **(kwargs or {}))
            for before, after in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if made and isinstance(before, torch.Tensor):
                    before.copy_(after)

        self.done.append(repeat)
        return out


def _storages(values: object) -> Iterator[StorageWeakRef]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            yield StorageWeakRef(value.untyped_storage())


def _has_masks(indices: object) -> bool:
    return any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool
        for index in tree_leaves(indices)
    )


class CapturingStream(InlineStream):
    """Runs work under watch, and repeats what it did."""

    def __init__(self) -> None:
        self.num_captured = 0
        self._watches: list[_Watch] = []

    def capture(self, work: Work) -> Work:
        """Raises NotCapturableError."""
        with _watched() as watch:
            work()
        self._watches.append(watch)
        self.num_captured += 1

        @torch.inference_mode()
        def replay() -> None:
            for repeat in watch.done:
                repeat()

        return replay

    def check_memory(self) -> None:
        """Raise NotCapturableError if a replay would read what is gone by now. The last call."""
        for watch in self._watches:
            watch.done.clear()
        gc.collect()
        for watch in self._watches:
            num_gone = sum(storage.expired() for storage in watch.read.values())
            if num_gone:
                raise NotCapturableError(f"{num_gone} tensors that were read are gone")


@contextmanager
def _watched() -> Iterator[_Watch]:
    watch, is_in_kernel = _Watch(), False
    launch = GridExecutor.__call__

    def call(self: GridExecutor, *args: object, **kwargs: object) -> object:
        nonlocal is_in_kernel
        watch.note_read((args, kwargs))
        watch.done.append(partial(launch, self, *args, **kwargs))
        is_in_kernel = True
        with _disable_current_modes():
            result = launch(self, *args, **kwargs)
        is_in_kernel = False
        return result

    def refusing(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def refuse(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
            if not is_in_kernel:
                raise NotCapturableError(name)
            return method(tensor, *args, **kwargs)

        return refuse

    with pytest.MonkeyPatch.context() as patch, watch:
        patch.setattr(GridExecutor, "__call__", call)
        for name in _TO_THE_HOST:
            patch.setattr(torch.Tensor, name, refusing(name, getattr(torch.Tensor, name)))
        yield watch
