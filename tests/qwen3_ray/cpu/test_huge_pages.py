from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.cpu import huge_pages

HUGE_BYTES = 2 << 20


def mapping_of(address: int) -> str:
    """What the system says of the mapping that holds `address`."""
    text = Path("/proc/self/smaps").read_text()
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        begin, end = (int(number, 16) for number in entry.split()[0].split("-"))
        if begin <= address < end:
            return entry
    raise AssertionError("no mapping holds the address")


def new_array() -> npt.NDArray[np.generic]:
    return huge_pages.zeros((2 * HUGE_BYTES,), np.uint8)


def new_kv_cache() -> npt.NDArray[np.generic]:
    (cache,) = allocate_kv_caches(
        num_layers=1,
        num_blocks=2 * HUGE_BYTES // (16 * 64 * 4),
        block_size=16,
        num_kv_heads=1,
        head_dim=64,
        dtype=torch.float32,
        device=torch.device("cpu"),
        panels=True,
    )
    values: npt.NDArray[np.generic] = cache.value.numpy().reshape(-1)
    return values


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5, 8)])
def test_zeros_have_their_shape(shape: tuple[int, ...]) -> None:
    array = huge_pages.zeros(shape, np.float32)
    assert (array.shape, array.dtype) == (shape, np.float32)
    assert not array.any()
    array[...] = 1
    assert array.all()


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here"
)
@pytest.mark.parametrize("allocate", [new_array, new_kv_cache])
def test_memory_is_private_and_asks_for_huge_pages(
    allocate: Callable[[], npt.NDArray[np.generic]],
) -> None:
    """Shared memory, though nobody shares it, seldom gets them."""
    array = allocate()
    array[:] = 1
    entry = mapping_of(array.ctypes.data + HUGE_BYTES)
    flags = entry[entry.index("VmFlags:") :].split()
    assert "hg" in flags
    assert "sh" not in flags
