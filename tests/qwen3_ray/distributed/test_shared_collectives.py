"""Ranks that speak through memory, as threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C import _distributed_c10d as c10d

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.numba_lanes import SLOT_BYTES, sum_parts
from qwen3_ray.distributed.shared_collectives import SharedCollectives
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import EngineError
from qwen3_ray.testing_models import run_ranks

HIDDEN = 96
SLOT_ROWS = SLOT_BYTES // (4 * HIDDEN)
TIMEOUT_S = 30.0


def addend(rank: int, num_rows: int, seed: int = 0) -> torch.Tensor:
    """Of very different sizes by rank: the order of additions shows in the bits."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return 10.0**rank * torch.randn(num_rows, HIDDEN, generator=generator)


def rank_order_sum(size: int, num_rows: int, seed: int = 0) -> torch.Tensor:
    total = addend(0, num_rows, seed)
    for rank in range(1, size):
        total = total + addend(rank, num_rows, seed)
    return total


def memory_of(group: TPGroup) -> SharedCollectives:
    assert isinstance(group.collectives, SharedCollectives)
    return group.collectives


@pytest.mark.parametrize("num_rows", [0, 1, SLOT_ROWS, SLOT_ROWS + 1, 2048, 3 * SLOT_ROWS])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_sums_are_in_rank_order_and_the_same_on_every_rank(size: int, num_rows: int) -> None:
    expected = rank_order_sum(size, num_rows)

    def run(group: TPGroup) -> bool:
        return torch.equal(group.all_reduce(addend(group.rank, num_rows)), expected)

    assert all(run_ranks(size, run))


@pytest.mark.parametrize("size", [2, 4])
def test_a_row_s_sum_does_not_depend_on_the_rows_beside_it(size: int) -> None:
    def run(group: TPGroup) -> bool:
        whole = group.all_reduce(addend(group.rank, 700))
        return all(
            torch.equal(group.all_reduce(addend(group.rank, 700)[row:end]), whole[row:end])
            for row, end in ((0, 1), (699, 700), (3, 8), (100, 699))
        )

    assert all(run_ranks(size, run))


@pytest.mark.parametrize("num_lanes", [1, 2, 5])
@pytest.mark.parametrize("num_threads", [(1, 1), (2, 2), (1, 3), (3, 2)], ids=str)
def test_threads_of_a_rank_share_a_sum(num_threads: tuple[int, int], num_lanes: int) -> None:
    """Any number of threads, on the ranks and on lanes; for less than one row each, too."""
    store = c10d.HashStore()
    sizes = [5, 1, 2048, 33, 0, 700]

    def run(rank: int) -> bool:
        group = SharedCollectives.connect(
            store, rank, 2, timeout_s=TIMEOUT_S, num_threads=num_lanes
        )
        pool, ok = ThreadPool(num_threads[rank]), np.ones(num_threads[rank], np.bool_)
        good = True
        for seed, num_rows in enumerate(sizes):
            x = addend(rank, num_rows, seed)
            num_operations = 10**9 if seed % 3 else 0
            pool.run(sum_parts, num_operations, group.shared_sum, x.view(-1).numpy(), ok)
            good &= torch.equal(x, rank_order_sum(2, num_rows, seed))
        return good and bool(ok.all())

    with ThreadPoolExecutor(2) as executor:
        assert list(executor.map(run, range(2))) == [True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_other_numbers_than_float32_are_summed_too(dtype: torch.dtype) -> None:
    def run(group: TPGroup) -> torch.Tensor:
        return group.all_reduce(torch.full((3, 5), group.rank + 1, dtype=dtype))

    assert all(torch.equal(x, torch.full((3, 5), 6, dtype=dtype)) for x in run_ranks(3, run))


def test_what_is_in_pieces_cannot_be_summed_in_place() -> None:
    def run(group: TPGroup) -> None:
        group.all_reduce(torch.zeros(4, 4).T[1:])

    with pytest.raises(ValueError, match="contiguous"):
        run_ranks(2, run)


def run_operation(name: str, group: SharedCollectives, seed: int, num_rows: int) -> bool:
    """Whether operation number `seed` gave what it should."""
    rank, size = group.shared_sum.rank, group.shared_sum.size
    x = addend(rank, num_rows, seed)
    inputs = [addend(other, num_rows, seed) for other in range(size)]
    if name == "sum":
        group.all_reduce(x)
        return torch.equal(x, rank_order_sum(size, num_rows, seed))
    if name == "broadcast":
        group.broadcast(x)
        return torch.equal(x, inputs[0])
    if name == "gather":
        whole = group.gather(x)
        return rank > 0 if whole is None else torch.equal(whole, torch.cat(inputs, dim=1))
    got = group.all_gather(x)
    return all(torch.equal(part, other) for part, other in zip(got, inputs, strict=True))


names = st.sampled_from(["sum", "broadcast", "all_gather", "gather"])
num_rows_of_one = st.sampled_from([1, 2, SLOT_ROWS, SLOT_ROWS + 1])


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 4),
    program=st.lists(st.tuples(names, num_rows_of_one), min_size=1, max_size=12),
    delays=st.randoms(use_true_random=False),
)
def test_slots_are_not_overwritten_before_all_have_read_them(
    size: int, program: list[tuple[str, int]], delays: Random
) -> None:
    """Ranks are late by turns, by as much as it takes another to be some operations ahead."""
    lateness = [[delays.choice((0, 0, 0, 30, 300)) for _ in program] for _ in range(size)]

    def run(group: TPGroup) -> bool:
        good = True
        for seed, (name, num_rows) in enumerate(program):
            for _ in range(lateness[group.rank][seed]):
                os.sched_yield()
            good &= run_operation(name, memory_of(group), seed, num_rows)
        return good

    assert all(run_ranks(size, run))


def test_many_short_turns_do_not_mix() -> None:
    def run(group: TPGroup) -> int:
        num_good = 0
        for number in range(3_000):
            x = torch.full((8,), float(number * (group.rank + 1)))
            num_good += bool((group.all_reduce(x) == 3 * number).all())
        return num_good

    assert run_ranks(2, run) == [3_000] * 2


def test_a_silent_rank_is_given_up() -> None:
    def run(group: TPGroup) -> None:
        if group.rank == 0:
            with pytest.raises(EngineError, match="a rank of the group is gone or silent"):
                group.all_reduce(torch.zeros(2))
            is_given_up.set()
        else:
            assert is_given_up.wait(TIMEOUT_S)

    is_given_up = threading.Event()
    run_ranks(2, run, timeout_s=0.3)


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_goes_is_missed_in_what_it_has_not_taken_part_in_alone(size: int) -> None:
    """Rank 1 sends its share of a gather and ends; rank 0 gets it, and fails in the next."""
    store = c10d.HashStore()
    has_ended = threading.Event()

    def run(rank: int) -> None:
        group = SharedCollectives.connect(store, rank, size, timeout_s=TIMEOUT_S)
        if rank == 0:
            assert has_ended.wait(TIMEOUT_S)
            got = group.gather(addend(0, 2))
            assert got is not None
            assert torch.equal(got[:, HIDDEN : 2 * HIDDEN], addend(1, 2))
            with pytest.raises(EngineError, match=r"rank 1.* of the group is gone"):
                group.all_reduce(addend(0, 2))
            return
        group.gather(addend(rank, 2))
        if rank == 1:
            del group  # as the end of its process does, this frees the lock
            has_ended.set()
        else:
            with pytest.raises(EngineError, match=r"rank 1.* of the group is gone"):
                group.all_reduce(addend(rank, 2))

    with ThreadPoolExecutor(size) as executor:
        for future in [executor.submit(run, rank) for rank in range(size)]:
            future.result()
