"""Which way a sum takes, and that a group works where its GPUs' memory cannot be read.

Ranks are threads that speak through gloo. Torch's own kernels need GPUs that reach each other: here
others stand for them, behind the same operators.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.process_group import ProcessGroupCollectives, sum_in_rank_order
from qwen3_ray.distributed.symmetric_memory import (
    _EQUAL_ORDINALS,
    ONE_SHOT_BYTES,
    TWO_SHOT_BYTES,
    PeerSumsFactory,
    SymmetricCollectives,
    TorchPeerSums,
    _rules,
    answer_for_others,
    known_numbers,
    with_peer_sums,
)

T = TypeVar("T")
CPU = torch.device("cpu")


class GlooSums:
    """`PeerSums` in rank order, or what a test makes of it."""

    def __init__(
        self, group: c10d.ProcessGroup, name: str, device: torch.device, *, exact: bool
    ) -> None:
        assert name.startswith("qwen3-ray-")
        assert device == CPU
        self.adds_in_switch = not exact
        self.rank = group.rank()
        self.ways: list[tuple[str, int]] = []
        self._group = ProcessGroupCollectives(group, exact=True)

    def one_shot(self, x: torch.Tensor) -> None:
        assert x.nbytes <= ONE_SHOT_BYTES
        self._sum("one shot", x)

    def two_shot(self, x: torch.Tensor) -> None:
        assert x.nbytes <= TWO_SHOT_BYTES
        self._sum("two shots", x)

    def abort(self) -> None:
        self.ways.append(("abort", 0))

    def _sum(self, way: str, x: torch.Tensor) -> None:
        assert x.dim() == 1
        self.ways.append((way, x.nbytes))
        parts = self._group.all_gather(x)
        sum_in_rank_order(self.in_order(parts, way), out=x)

    def in_order(self, parts: list[torch.Tensor], way: str) -> list[torch.Tensor]:
        del way
        return parts


class BackwardInTwoShots(GlooSums):
    def in_order(self, parts: list[torch.Tensor], way: str) -> list[torch.Tensor]:
        return parts[::-1] if way == "two shots" else parts


class FirstPartLost(GlooSums):
    """On one rank alone: the others must notice."""

    def in_order(self, parts: list[torch.Tensor], way: str) -> list[torch.Tensor]:
        return parts[1:] + parts[1:2] if self.rank == 1 and way == "one shot" else parts


class Absent(GlooSums):
    def __init__(
        self, group: c10d.ProcessGroup, name: str, device: torch.device, *, exact: bool
    ) -> None:
        if group.rank() == 1:
            raise RuntimeError("the driver said no")
        super().__init__(group, name, device, exact=exact)


def on_ranks(
    size: int, body: Callable[[ProcessGroupCollectives], T], *, exact: bool = True
) -> list[T]:
    store = c10d.HashStore()

    def run(rank: int) -> T:
        return body(
            ProcessGroupCollectives.connect(
                store, rank, size, device=CPU, timeout_s=30, exact=exact
            )
        )

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def symmetric(
    collectives: ProcessGroupCollectives, make: PeerSumsFactory = GlooSums
) -> SymmetricCollectives:
    result = with_peer_sums(collectives, CPU, make=make)
    assert isinstance(result, SymmetricCollectives)
    return result


def test_the_way_of_a_sum_follows_from_its_size() -> None:
    sizes = [16, ONE_SHOT_BYTES, ONE_SHOT_BYTES + 16, TWO_SHOT_BYTES, TWO_SHOT_BYTES + 16]

    def ways(collectives: ProcessGroupCollectives) -> list[tuple[str, int]]:
        group = symmetric(collectives)
        assert isinstance(group._sums, GlooSums)
        group._sums.ways.clear()
        for num_bytes in sizes:
            x = torch.ones(num_bytes // 4, 1)
            group.all_reduce(x)
            assert bool((x == 2).all())
        return group._sums.ways

    expected = [("one shot", size) for size in sizes[:2]] + [
        ("two shots", size) for size in sizes[2:4]
    ]
    assert on_ranks(2, ways) == [expected] * 2


def test_what_torch_s_kernels_do_not_know_goes_the_old_way() -> None:
    def ways(collectives: ProcessGroupCollectives) -> list[tuple[str, int]]:
        group = symmetric(collectives)
        assert isinstance(group._sums, GlooSums)
        group._sums.ways.clear()
        for x in (
            torch.ones(8, dtype=torch.float16),
            torch.ones(7),
            torch.ones(9)[1:],
            torch.ones(0),
        ):
            group.all_reduce(x)
            assert bool((x == 2).all())
        return group._sums.ways

    assert on_ranks(2, ways) == [[]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_element_s_bits_do_not_depend_on_the_size_of_its_tensor(dtype: torch.dtype) -> None:
    """Shorter and longer than what either kernel takes, in exact mode."""
    most = TWO_SHOT_BYTES // dtype.itemsize + 8

    def run(collectives: ProcessGroupCollectives) -> bool:
        group = symmetric(collectives)
        part = known_numbers(collectives.rank, most, dtype, CPU)
        whole = part.clone()
        group.all_reduce(whole)
        same = True
        for length in (8, 7, ONE_SHOT_BYTES // dtype.itemsize + 8, most - 8):
            x = part[:length].clone()
            group.all_reduce(x)
            same &= torch.equal(x, whole[:length])
        return same and group.exact

    assert all(on_ranks(3, run))


def test_known_numbers_show_the_order_of_additions() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for size in (3, 4, 8):
            parts = [known_numbers(rank, 1_000, dtype, CPU) for rank in range(size)]
            forward, backward = torch.empty_like(parts[0]), torch.empty_like(parts[0])
            sum_in_rank_order(parts, out=forward)
            sum_in_rank_order(parts[::-1], out=backward)
            assert not torch.equal(forward, backward)


@pytest.mark.parametrize("make", [BackwardInTwoShots, FirstPartLost, Absent])
def test_a_group_works_without_kernels_that_are_wrong_on_one_rank(
    make: PeerSumsFactory, caplog: pytest.LogCaptureFixture
) -> None:
    def run(collectives: ProcessGroupCollectives) -> bool:
        group = with_peer_sums(collectives, CPU, make=make)
        x = torch.ones(8)
        group.all_reduce(x)
        return group is collectives and bool((x == 3).all())

    with caplog.at_level(logging.WARNING):
        assert all(on_ranks(3, run))
    assert len(caplog.records) == 3  # one of each rank
    reasons = {
        BackwardInTwoShots: "a sum of 655360 bytes of torch.bfloat16",
        FirstPartLost: "a sum of 16 bytes of torch.bfloat16",
        Absent: "RuntimeError: the driver said no",
    }
    assert reasons[make] in caplog.text  # type: ignore[index]


def test_a_switch_may_add_in_an_order_of_its_own_where_bits_do_not_matter() -> None:
    def run(collectives: ProcessGroupCollectives) -> tuple[bool, bool]:
        group = symmetric(collectives, BackwardInTwoShots)
        return group.exact, group._sums.adds_in_switch

    assert on_ranks(4, run, exact=False) == [(False, True)] * 4


@pytest.mark.parametrize(
    ("size", "exact", "ordinals", "expected"),
    [
        (4, False, [0, 1, 2, 3], {}),
        (4, False, [0, 0, 0, 0], _EQUAL_ORDINALS),
        (4, True, [0, 1, 2, 3], _EQUAL_ORDINALS),
    ],
)
def test_the_switch_is_given_up_where_it_is_not_wanted_or_ordinals_are_equal(
    size: int, exact: bool, ordinals: list[int], expected: dict[str, str]
) -> None:
    """Torch makes no multicast once it is told to allow devices of one ordinal."""
    gathered = [torch.tensor([ordinal]) for ordinal in ordinals]
    assert on_ranks(size, lambda group: _rules(group, gathered), exact=exact) == [expected] * size


def test_an_abort_lets_kernels_end_though_nccl_waits_for_them() -> None:
    released = threading.Event()

    class Sums(GlooSums):
        def abort(self) -> None:
            released.set()

    def run(collectives: ProcessGroupCollectives) -> bool:
        group = symmetric(collectives, Sums)
        collectives.abort = lambda: released.wait(30)  # type: ignore[method-assign, assignment]
        started = time.monotonic()
        group.abort()
        return time.monotonic() - started < 10

    assert all(on_ranks(2, run))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_kernel_that_waits_for_signs_of_the_dead_gets_them(rank: int) -> None:
    """Kernels in a row, each with two barriers of two blocks, as torch's have."""
    size, num_blocks, num_barriers = 3, 2, 6
    pads = [torch.zeros(16, dtype=torch.int32) for _ in range(size)]
    pads[1][:] = 1  # a rank that died before it took its signs
    given_up = threading.Event()
    syncs = [threading.Barrier(size) for _ in range(num_blocks)]

    def swap(pad: torch.Tensor, word: int, expected: int) -> None:
        words = pad.numpy()
        while words[word] != expected and not given_up.is_set():
            time.sleep(0)
        words[word] = 1 - expected

    def thread_of_kernel(block: int, target: int) -> None:
        for _ in range(num_barriers):
            swap(pads[target], block * size + rank, 0)
            swap(pads[rank], block * size + target, 1)
            syncs[block].wait()

    with ThreadPoolExecutor(size * num_blocks) as pool:
        threads = [
            pool.submit(thread_of_kernel, block, target)
            for block in range(num_blocks)
            for target in range(size)
        ]
        deadline = time.monotonic() + 20

        def until() -> bool:
            return all(map(Future.done, threads)) or time.monotonic() > deadline

        answer_for_others(pads, rank, until=until)
        have_ended = all(map(Future.done, threads))
        given_up.set()
    assert have_ended


@pytest.fixture
def operators() -> Iterator[dict[str, ProcessGroupCollectives]]:
    """Torch's operators on CPU, for groups by name."""
    groups: dict[str, ProcessGroupCollectives] = {}
    library = torch.library.Library("symm_mem", "IMPL")

    def one_shot(buffer: torch.Tensor, op: str, name: str, out: torch.Tensor) -> torch.Tensor:
        assert (op, buffer.shape) == ("sum", out.shape)
        part = buffer.clone()  # which the others read, and this kernel does not write
        groups[name].all_reduce(part)
        return out.copy_(part)

    def two_shot(buffer: torch.Tensor, op: str, name: str) -> torch.Tensor:
        assert op == "sum"
        groups[name].all_reduce(buffer)
        return buffer

    def in_switch(buffer: torch.Tensor, op: str, name: str) -> torch.Tensor:
        two_shot(buffer, op, name)
        return buffer.mul_(10)  # to tell it from the other

    library.impl("one_shot_all_reduce_out", one_shot, "CPU")
    library.impl("two_shot_all_reduce_", two_shot, "CPU")
    library.impl("multimem_all_reduce_", in_switch, "CPU")
    yield groups
    library._destroy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_s_operators_get_what_they_ask_for(
    dtype: torch.dtype, operators: dict[str, ProcessGroupCollectives]
) -> None:
    def run(collectives: ProcessGroupCollectives) -> list[float]:
        sums = object.__new__(TorchPeerSums)  # all but the GPUs' memory
        sums.adds_in_switch = False
        sums._name = f"group of {collectives.rank}"
        sums._buffer = torch.empty(TWO_SHOT_BYTES, dtype=torch.uint8)
        operators[sums._name] = collectives
        found = []
        for is_in_switch, num_bytes, add in (
            (False, 64, sums.one_shot),
            (False, TWO_SHOT_BYTES, sums.two_shot),
            (True, TWO_SHOT_BYTES, sums.two_shot),
        ):
            sums.adds_in_switch = is_in_switch
            x = torch.full((num_bytes // dtype.itemsize,), 1.0 + collectives.rank, dtype=dtype)
            add(x)
            assert bool((x == x[0]).all())
            found.append(float(x[0]))
        return found

    assert on_ranks(3, run) == [[6.0, 6.0, 60.0]] * 3
