"""How functions are compiled that kernels alone call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qwen3_ray.cpu.compiler import njit

_Function = TypeVar("_Function", bound=Callable[..., object])


def callee(function: _Function, *, variant: str = "") -> _Function:
    """Compile without an entry from Python and a cache of its own: a quarter less time.

    Its caller's cache holds it; the folder's name follows the sources of all `numba_*` files.

    Args:
        function: what to compile.
        variant: of functions that one `def` makes, what tells them apart. Numba itself adds a
            number, by the order of compilation: in code that several processes wrote to the cache,
            two variants could have one symbol, and the first that is loaded would serve for both.

    Raises:
        ValueError: one `def` may make several functions here, and there is no variant.
    """
    if variant:
        function.__qualname__ = f"{function.__qualname__}_{variant}"
    elif "<locals>" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} needs a variant: it may be made again")
    # The stubs lack these options.
    compiled: _Function = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]
    return compiled
