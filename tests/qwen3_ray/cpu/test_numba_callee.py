from __future__ import annotations

from collections.abc import Callable

import pytest

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.layers import numba_linear


def make(step: int, variant: str) -> Callable[[int], int]:
    def add(x: int) -> int:
        return x + step

    return callee(add, variant=variant)


def test_functions_of_one_def_need_names_of_their_own() -> None:
    make(1, "one")
    make(2, "two")
    with pytest.raises(ValueError, match="needs a variant"):
        make(3, "two")


def test_products_of_different_elements_are_told_apart_in_compiled_code() -> None:
    """Else code that two processes cached could multiply halves as if they were floats."""
    kernels = numba_linear._multiply_floats, numba_linear._multiply_halves
    names = [kernel.__qualname__ for kernel in kernels]
    assert len(set(names)) == len(names)
