"""How functions are compiled that kernels alone call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qwen3_ray.cpu.compiler import njit

_Function = TypeVar("_Function", bound=Callable[..., object])


def callee(function: _Function) -> _Function:
    """Compile without an entry from Python and a cache of its own: a quarter less time.

    Its caller's cache holds it; the folder's name follows the sources of all `numba_*` files.
    """
    # The stubs lack these options.
    compiled: _Function = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]
    return compiled
