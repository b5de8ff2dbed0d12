from __future__ import annotations

import pytest

from qwen3_ray.attention import numba_panels
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.layers import numba_linear


def test_a_function_that_may_be_made_again_needs_a_variant() -> None:
    def add(x: int) -> int:
        return x + 1

    with pytest.raises(ValueError, match="needs a variant"):
        callee(add)
    assert callee(add, variant="one").__qualname__.endswith("add_one")


@pytest.mark.parametrize(
    "kernels",
    [
        (
            numba_linear._multiply_floats,
            numba_linear._multiply_halves,
            numba_linear._multiply_bytes,
        ),
        (numba_panels._floats, numba_panels._halves),
    ],
)
def test_products_of_different_elements_are_told_apart_in_compiled_code(
    kernels: tuple[object, ...],
) -> None:
    """Else code that two processes cached could multiply halves as if they were floats."""
    names = [kernel.__qualname__ for kernel in kernels]
    assert len(set(names)) == len(names)
