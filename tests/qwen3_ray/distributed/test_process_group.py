"""Collectives of gloo whose tensors go through copies, as those of ranks that share a GPU do."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.collectives import connect
from qwen3_ray.distributed.process_group import _NEVER_KILL, ProcessGroupCollectives
from qwen3_ray.distributed.tp_group import TPGroup

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def staged(rank: int, size: int, store: c10d.Store) -> TPGroup:
    return TPGroup.rendezvous(store, rank, size, device=DEVICE, timeout_s=30, is_staged=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_all_collectives_work_on_copies(size: int, dtype: torch.dtype) -> None:
    store = c10d.HashStore()
    parts = [
        (1.7**rank * torch.arange(1, 36).view(5, 7) / 3).to(DEVICE, dtype) for rank in range(size)
    ]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part

    def run(rank: int) -> None:
        group = staged(rank, size, store)
        assert isinstance(group.collectives, ProcessGroupCollectives)
        assert group.collectives._stage(parts[rank]) is not parts[rank]
        x = parts[rank].clone()
        assert group.all_reduce(x) is x
        assert torch.equal(x, total)
        gathered = group.collectives.all_gather(parts[rank].T)
        assert all(torch.equal(got, part.T) for got, part in zip(gathered, parts, strict=True))
        assert {got.device.type for got in gathered} == {DEVICE.type}
        side_by_side = group.gather(parts[rank])
        if rank == 0:
            assert side_by_side is not None
            assert torch.equal(side_by_side, torch.cat(parts, dim=1))
        x = parts[rank].clone()
        group.collectives.broadcast(x)
        assert torch.equal(x, parts[0])

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(run, range(size)))


def test_without_need_nothing_is_copied() -> None:
    def run(rank: int) -> bool:
        group = ProcessGroupCollectives.connect(
            store, rank, 2, device=torch.device("cpu"), timeout_s=30
        )
        x = torch.ones(3)
        return group._stage(x) is x

    store = c10d.HashStore()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [True, True]


def test_staged_ranks_on_cpu_do_not_meet_in_memory() -> None:
    def run(rank: int) -> bool:
        group = connect(store, rank, 2, device=torch.device("cpu"), timeout_s=30, is_staged=True)
        return isinstance(group, ProcessGroupCollectives)

    store = c10d.HashStore()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [True, True]


@pytest.mark.parametrize("rank", [0, 1])
def test_torch_s_watchdog_does_not_end_a_process_that_may_be_the_user_s(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads its settings when a group is made; nothing else is to see them."""
    names = list(_NEVER_KILL)
    seen: dict[str, str | None] = {}

    class Nccl:
        def __init__(self, *_: object) -> None:
            seen.update((name, os.environ.get(name)) for name in names)
            raise RuntimeError("no GPU")

        class Options:
            pass

    for name in names[1:]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[0], "2")  # the user's own setting
    monkeypatch.setattr(c10d, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    with pytest.raises(RuntimeError, match="no GPU"):
        ProcessGroupCollectives.connect(
            c10d.HashStore(), rank, 2, device=torch.device("cuda", 0), timeout_s=1
        )
    assert seen == {names[0]: "2"} | dict.fromkeys(names[1:], "0" if rank == 0 else None)
    assert not any(name in os.environ for name in names[1:])
