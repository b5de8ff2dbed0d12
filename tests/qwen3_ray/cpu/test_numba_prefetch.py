"""Asking for memory ahead changes nothing but time."""

import numpy as np

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_prefetch import prefetch


@njit
def total_after_prefetch(values: np.ndarray, address: int) -> int:
    prefetch(address, 1 << 12)
    return int(values.sum())


def test_any_address_may_be_asked_for() -> None:
    values = np.arange(100)
    for address in (values.ctypes.data, values.ctypes.data + values.nbytes, 0, -1):
        assert total_after_prefetch(values, address) == 4950


def test_it_is_an_instruction_of_its_own() -> None:
    total_after_prefetch(np.arange(3), 0)
    assert any("prefetch" in code for code in total_after_prefetch.inspect_asm().values())
