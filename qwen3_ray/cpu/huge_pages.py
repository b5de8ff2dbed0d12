"""Large memory: weights and KV blocks, and what every step makes anew."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

_Element = TypeVar("_Element", bound=np.generic)
_Floats = npt.NDArray[np.float32]

_HUGE_FLOATS = (2 << 20) // 4
_kept: list[_Floats] = []  # at most one
_lock = threading.RLock()  # a finalizer may come while its own thread holds it


def zeros(shape: tuple[int, ...], dtype: type[_Element]) -> npt.NDArray[_Element]:
    """Zeros on huge pages where the system has them; memory is taken as it is first written.

    With small pages, their address translation takes 1.7 times as long as reading KV blocks.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    # Python maps shared memory unless told otherwise, and that seldom gets huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without huge pages refuses the advice; small pages serve as well.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def empty(*shape: int) -> torch.Tensor:
    """As `torch.empty` of float32; a large one on pages that an earlier one has left.

    malloc gives more than 32 MB, as logits of 64 requests have, back to the system every time,
    which then clears them anew. The largest that nobody holds any more, in whatever view, is kept
    until `give_back`.
    """
    size = math.prod(shape)
    if size < _HUGE_FLOATS:
        return torch.empty(shape)
    with _lock:
        kept = _kept.pop() if _kept else None
    if kept is None or kept.size < size:
        kept = zeros((-(-size // _HUGE_FLOATS) * _HUGE_FLOATS,), np.float32)
    # Views of a numpy array do not hold it but what it is a view of; tensors hold theirs.
    array = kept[:size]
    weakref.finalize(array, _keep, kept).atexit = False
    return torch.from_numpy(array).view(shape)


def give_back() -> None:
    """Return to the system what `empty` keeps."""
    with _lock:
        _kept.clear()


def _keep(memory: _Floats) -> None:
    with _lock:
        _kept[:] = [max([memory, *_kept], key=len)]
