"""Triton's compiler with types, and where its kernels run.

With `TRITON_INTERPRET=1` in the environment before Triton loads, kernels run on CPU tensors in an
interpreter: slowly, but with the program's own logic and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast, overload

import triton

if triton.knobs.runtime.interpret:
    from qwen3_ray.gpu.triton_interpreter import (
        count_by_tensors,
        multiply_row_by_row,
        name_tuples_late,
        prepare_once,
        round_to_nearest,
    )

    round_to_nearest()
    multiply_row_by_row()
    count_by_tensors()
    prepare_once()
    name_tuples_late()

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Kernel(Protocol):
    """A compiled kernel: `kernel[grid](*arguments)`, one program for each point of the grid."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]: ...


@overload
def kernel(function: Callable[..., None], /) -> Kernel: ...


@overload
def kernel(*, do_not_specialize: Sequence[str]) -> Callable[[Callable[..., None]], Kernel]: ...


def kernel(
    function: Callable[..., None] | None = None, /, *, do_not_specialize: Sequence[str] = ()
) -> Kernel | Callable[[Callable[..., None]], Kernel]:
    """Decorates what is launched.

    Parameters are annotated `tl.tensor` (a pointer to a tensor's elements, which is what is given
    at the launch, or a number), or `tl.constexpr` (compiled in). Numbers in `do_not_specialize`
    are compiled for any value; of others 1 and multiples of 16 are cases of their own.
    """
    decorate = triton.jit(do_not_specialize=list(do_not_specialize))
    return cast(Kernel, decorate if function is None else decorate(function))


def device_function(function: _Function) -> _Function:
    """Decorates what kernels call; it is inlined into them."""
    return cast(_Function, triton.jit(function))
