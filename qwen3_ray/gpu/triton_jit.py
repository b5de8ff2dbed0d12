"""Triton's compiler with types, and where its kernels run.

With `TRITON_INTERPRET=1` in the environment before Triton loads, kernels run on CPU tensors in an
interpreter: slowly, but with the program's own logic and masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import triton

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Kernel(Protocol):
    """A compiled kernel: `kernel[grid](*arguments)`, one program for each point of the grid."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]: ...


def kernel(function: Callable[..., None]) -> Kernel:
    """Decorates what is launched.

    Parameters are annotated `tl.tensor` (a pointer to a tensor's elements, which is what is given
    at the launch, or a number), or `tl.constexpr` (compiled in).
    """
    return cast(Kernel, triton.jit(function))


def device_function(function: _Function) -> _Function:
    """Decorates what kernels call; it is inlined into them."""
    return cast(_Function, triton.jit(function))
