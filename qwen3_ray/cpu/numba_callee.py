"""How functions are compiled that kernels alone call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qwen3_ray.cpu.compiler import njit

_Function = TypeVar("_Function", bound=Callable[..., object])


_names: set[str] = set()


def callee(function: _Function, *, variant: str = "") -> _Function:
    """Compile without an entry from Python and a cache of its own: a quarter less time.

    Its caller's cache holds it; the folder's name follows the sources of all `numba_*` files.

    Args:
        function: what to compile.
        variant: of functions that one `def` makes, what tells them apart. Numba itself adds a
            number, by the order of compilation: in code that several processes wrote to the cache,
            two variants could have one symbol, and the first that is loaded would serve for both.

    Raises:
        ValueError: another function has this name.
    """
    if variant:
        function.__qualname__ = f"{function.__qualname__}_{variant}"
    name = f"{function.__module__}.{function.__qualname__}"
    if name in _names:
        raise ValueError(f"two functions would be compiled as {name}: each needs a variant")
    _names.add(name)
    # The stubs lack these options.
    compiled: _Function = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]
    return compiled
