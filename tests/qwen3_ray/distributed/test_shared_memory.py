"""What ranks map and watch: where it cannot be had, what is left of it, and with two processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed import shared_memory
from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.distributed.shared_collectives import SharedCollectives
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import EngineError
from qwen3_ray.testing_models import run_ranks

TIMEOUT_S = 30.0
NAME = "memfd:qwen3-ray"

Start = Callable[[int, int], tuple[SharedCollectives, subprocess.Popen[bytes]]]


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_name: str) -> int:
        raise OSError("no memory files here")

    monkeypatch.setattr(shared_memory, "_create", fails)


@pytest.mark.usefixtures("without_memory")
def test_without_such_memory_all_ranks_take_sockets_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(group: TPGroup) -> bool:
        assert isinstance(group.collectives, ProcessGroupCollectives)
        return bool((group.all_reduce(torch.full((3,), group.rank)) == 3).all())

    assert all(run_ranks(3, run))
    assert "sockets, which is slower: rank 0: no memory files here" in caplog.text


def test_one_rank_that_cannot_open_the_memory_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    once = iter([True])
    really_open = shared_memory._open

    def fails_once(place: str) -> int:
        if next(once, False):
            raise PermissionError(f"not yours: {place}")
        return really_open(place)

    monkeypatch.setattr(shared_memory, "_open", fails_once)
    store = c10d.HashStore()
    with ThreadPoolExecutor(2) as executor:
        futures: list[Future[object]] = [
            executor.submit(SharedCollectives.connect, store, rank, 2, timeout_s=TIMEOUT_S)
            for rank in range(2)
        ]
    for future in futures:
        with pytest.raises(OSError, match="not yours"):
            future.result()


def test_a_file_that_has_taken_another_s_place_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="another file"):
        shared_memory._open(f"{tmp_path / 'file'}:{(tmp_path / 'file').stat().st_ino + 1}")


def left_overs(join_s: float) -> int:
    """Threads, open files and mappings of groups in this process, after a wait for the threads."""
    for thread in threading.enumerate():
        if thread.name == "rank-watch" and thread.ident is not None:
            thread.join(join_s)
    num_threads = sum(thread.name == "rank-watch" for thread in threading.enumerate())
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return (
        num_threads + "".join(links).count(NAME) + Path("/proc/self/maps").read_text().count(NAME)
    )


def test_nothing_is_left_of_a_group_that_is_gone() -> None:
    gc.collect()  # groups of tests that raised
    before = left_overs(TIMEOUT_S)
    assert min(run_ranks(2, lambda _group: left_overs(0))) > before
    assert left_overs(TIMEOUT_S) <= before


OTHERS_SOURCE = """
import sys, torch
from concurrent.futures import ThreadPoolExecutor
from torch._C import _distributed_c10d as c10d
from qwen3_ray.distributed.shared_collectives import SharedCollectives

path, size, num_sums = sys.argv[1], *map(int, sys.argv[2:])

def run(rank):
    store = c10d.FileStore(path, size)
    group = SharedCollectives.connect(store, rank, size, timeout_s=60)
    for number in range(num_sums):
        group.all_reduce(torch.full((700,), float(number * (rank + 1))))
    return group

with ThreadPoolExecutor(size - 1) as executor:
    groups = list(executor.map(run, range(1, size)))
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(size, num_sums)`: this thread as rank 0, and all others as threads of a process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(size: int, num_sums: int) -> tuple[SharedCollectives, subprocess.Popen[bytes]]:
        path = str(tmp_path / "store")
        command = [sys.executable, "-c", OTHERS_SOURCE, path, str(size), str(num_sums)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stderr=pipe))
        store = c10d.FileStore(path, size)
        return SharedCollectives.connect(store, 0, size, timeout_s=60), started[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_more_ranks_than_cores_get_on_and_end_in_silence(start: Start) -> None:
    size, num_sums = 2 + (os.cpu_count() or 1), 300
    group, others = start(size, num_sums)
    for number in range(num_sums):
        x = torch.full((700,), float(number))
        group.all_reduce(x)
        assert (x == number * size * (size + 1) / 2).all()
    _, errors = others.communicate(timeout=60)
    assert (others.returncode, errors) == (0, b"")


def test_a_killed_process_is_noticed_at_once(start: Start) -> None:
    group, other = start(2, 0)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(group.all_reduce, torch.zeros(1))
        other.send_signal(signal.SIGKILL)
        other.wait()
        killed_at = time.monotonic()
        with pytest.raises(EngineError, match="rank 1 of the group is gone"):
            waiting.result(TIMEOUT_S)
    assert time.monotonic() - killed_at < 1.0
