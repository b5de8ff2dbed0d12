"""What trees of processes use: CPU time, memory, and how they end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

STOP_LIMIT_S = 30.0
ORPHANS_LIMIT_S = 2.0
MEMORY_PERIOD_S = 0.25


def tree(pid: int) -> list[psutil.Process]:
    """The process and all below it; empty when it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of a tree, that of children which have ended included."""
    total = 0.0
    for process in tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_cpu_seconds() -> float:
    """CPU time of all processes of this machine, since it started."""
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    guests: float = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - guests  # guests' time is within user time


class Meter:
    """Cores that processes outside a tree use while the block runs; `foreign_cores` after it."""

    def __init__(self, pid: int | None = None) -> None:
        self.foreign_cores = 0.0
        self._pid = pid or os.getpid()

    def __enter__(self) -> Self:
        self._all, self._own = machine_cpu_seconds(), cpu_seconds(self._pid)
        self._since = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._since
        foreign = machine_cpu_seconds() - self._all - (cpu_seconds(self._pid) - self._own)
        self.foreign_cores = max(0.0, foreign) / seconds


@dataclass(slots=True)
class PeakMemory:
    """Most memory that trees of processes were seen to have, in bytes."""

    rss: int = 0
    """Sum of each process's own peak (VmHWM), pages of mapped files included."""
    anonymous: int = 0
    """Sum of what no file backs, as of the largest sample."""

    def look(self, pid: int) -> None:
        """Take one sample of the tree of `pid`."""
        fields = [_status(process.pid) for process in tree(pid)]
        self.rss = max(self.rss, sum(field.get("VmHWM", 0) for field in fields))
        self.anonymous = max(self.anonymous, sum(field.get("RssAnon", 0) for field in fields))

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Sample again and again while the block runs."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(MEMORY_PERIOD_S):
                self.look(pid)

        thread = threading.Thread(target=watch, name="memory-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def stop_tree(pid: int) -> None:
    """Ask the process to end, which should end its children; kill what is left of the tree."""
    processes = tree(pid)
    if not processes:
        return
    processes[0].terminate()
    psutil.wait_procs(processes[:1], timeout=STOP_LIMIT_S)
    _, alive = psutil.wait_procs(processes, timeout=ORPHANS_LIMIT_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=STOP_LIMIT_S)


def _status(pid: int) -> dict[str, int]:
    """Sizes in /proc/PID/status, in bytes; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in rows}
