"""Numba's `intrinsic` with a type: a function of LLVM instructions that kernels call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llvmlite import ir
from numba.core.typing.templates import Signature
from numba.extending import intrinsic as numba_intrinsic

_Result = TypeVar("_Result")

Values = Sequence[ir.Value]
Typed = tuple[Signature, Callable[..., ir.Value]]
"""What a function that is made an intrinsic returns: its signature and its generator."""


def intrinsic(_result: type[_Result]) -> Callable[[Callable[..., Typed]], Callable[..., _Result]]:
    """Make an intrinsic whose calls have the type `_result`; the context is Numba's to give."""

    def make(function: Callable[..., Typed]) -> Callable[..., _Result]:
        made: Callable[..., _Result] = numba_intrinsic(function)
        return made

    return make
