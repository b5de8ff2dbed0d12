from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.cpu import huge_pages
from qwen3_ray.runner.memory_profile import peak_bytes_of_process

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


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    huge_pages.give_back()
    yield
    huge_pages.give_back()


@pytest.mark.usefixtures("nothing_kept")
class TestEmpty:
    @pytest.mark.parametrize("shape", [(0,), (3, 5), (2, 3, 1 << 19)])
    def test_it_has_its_shape(self, shape: tuple[int, ...]) -> None:
        tensor = huge_pages.empty(*shape)
        assert (tensor.shape, tensor.dtype) == (shape, torch.float32)
        tensor.fill_(1)
        assert bool((tensor == 1).all())

    def test_memory_that_nobody_holds_is_used_again(self) -> None:
        first = huge_pages.empty(1 << 20)
        first.fill_(7)  # new memory would hold zeros
        del first
        assert bool((huge_pages.empty(1 << 19) == 7).all())

    @pytest.mark.parametrize(
        "view_of",
        [
            lambda whole: whole[5:].view(-1, 1),
            lambda whole: whole.split([5, whole.numel() - 5])[1].numpy().reshape(-1, 1)[1:],
        ],
    )
    def test_memory_of_which_a_view_is_left_is_not(
        self, view_of: Callable[[torch.Tensor], npt.NDArray[np.generic] | torch.Tensor]
    ) -> None:
        whole = huge_pages.empty(1 << 20)
        whole.fill_(7)
        view = view_of(whole)
        del whole
        gc.collect()
        huge_pages.empty(1 << 20).fill_(8)
        assert bool((view == 7).all())
        huge_pages.give_back()
        del view
        assert bool((huge_pages.empty(1 << 20) == 7).all())

    def test_the_larger_is_kept(self) -> None:
        small, large = huge_pages.empty(1 << 19), huge_pages.empty(1 << 20)
        large.fill_(7)
        del large, small
        assert bool((huge_pages.empty(1 << 20) == 7).all())

    def test_what_is_too_small_makes_room(self) -> None:
        small = huge_pages.empty(1 << 19)
        del small
        large = huge_pages.empty(1 << 20)
        large.fill_(1)
        assert bool((large == 1).all())

    def test_what_is_kept_is_given_back(self) -> None:
        def take_and_leave() -> None:
            huge_pages.empty(32 << 20).fill_(1)

        take_and_leave()
        assert peak_bytes_of_process(take_and_leave) > 100 << 20


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
