"""What torch's exchanges find in a store, when one process has made more of them than another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.numbered_store import NumberedStore
from qwen3_ray.distributed.process_group import ProcessGroupCollectives

SIZE = 3
CPU = torch.device("cpu")


class Exchange:
    """As torch's `StoreExchange` in C++: counts what its process has exchanged, whatever for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def all_gather(self, store: c10d.Store, rank: int, value: bytes) -> list[bytes]:
        keys = [f"CUDASymmetricMemory/{self.count}/{other}" for other in range(SIZE)]
        self.count += 1
        store.set(keys[rank], value)  # type: ignore[arg-type]
        return store.multi_get(keys)

    def barrier(self, store: c10d.Store) -> None:
        key = f"CUDASymmetricMemory/{self.count}"
        self.count += 1
        store.barrier(key, SIZE, timedelta(seconds=5))  # type: ignore[attr-defined]


def exchange_twice(store: c10d.Store, exchange: Exchange, rank: int) -> list[list[bytes]]:
    through_c = c10d.PrefixStore("group", store)  # calls the store as torch's C++ does
    gathered = []
    for turn in range(2):
        value = bytes([0, 255, turn, rank])
        gathered.append(exchange.all_gather(through_c, rank, value))
        exchange.barrier(through_c)
    return gathered


def test_ranks_meet_though_one_of_them_has_met_others_before() -> None:
    """As rank 0 of a process's second `LLM`; the others are always new processes."""
    shared = c10d.HashStore()
    shared.set_timeout(timedelta(seconds=5))

    def run(rank: int) -> list[list[bytes]]:
        group = ProcessGroupCollectives.connect(shared, rank, SIZE, device=CPU, timeout_s=30)
        store = group.group.get_group_store()  # type: ignore[attr-defined]
        return exchange_twice(store, Exchange(7 if rank == 0 else 0), rank)

    expected = [[bytes([0, 255, turn, rank]) for rank in range(SIZE)] for turn in range(2)]
    with ThreadPoolExecutor(SIZE) as pool:
        assert list(pool.map(run, range(SIZE))) == [expected] * SIZE


def test_keys_without_a_number_and_the_rest_of_keys_stay_as_they_are() -> None:
    inner = c10d.HashStore()
    store = NumberedStore(inner)
    for key in ("plain", "a/b", "x/5/1", "x/5/2", "x/9", "y/9/z"):
        store.set(key, key)
    for key, found in {
        "x/0/1": b"x/5/1",
        "x/0/2": b"x/5/2",
        "x/1": b"x/9",
        "y/0/z": b"y/9/z",
    }.items():
        assert inner.get(key) == found
    assert (inner.get("plain"), inner.get("a/b")) == (b"plain", b"a/b")
    assert store.add("x/5/count", 2) == 2
    assert inner.add("x/0/count", 1) == 3
    store.wait(["x/5/1"])
    with pytest.raises(RuntimeError):
        store.wait(["x/77/1"], timedelta(milliseconds=10))
