"""What processes use is seen, and they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.peers import processes
from benchmarks.peers.processes import (
    Meter,
    PeakMemory,
    cpu_seconds,
    machine_cpu_seconds,
    stop_tree,
    tree,
)

BUSY = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


def test_cpu_time_of_children_that_ended_is_counted() -> None:
    own, all_of_machine = cpu_seconds(os.getpid()), machine_cpu_seconds()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert cpu_seconds(os.getpid()) - own >= 0.4
    assert machine_cpu_seconds() - all_of_machine >= 0.4


@pytest.mark.parametrize(("own", "is_foreign"), [((10.0, 13.0), False), ((10.0, 12.5), True)])
def test_what_the_tree_used_is_not_foreign(
    monkeypatch: pytest.MonkeyPatch, own: tuple[float, float], is_foreign: bool
) -> None:
    of_machine, of_tree = iter((100.0, 103.0)), iter(own)
    monkeypatch.setattr(processes, "machine_cpu_seconds", lambda: next(of_machine))
    monkeypatch.setattr(processes, "cpu_seconds", lambda _pid: next(of_tree))
    with Meter() as meter:
        pass
    assert (meter.foreign_cores > 0) is is_foreign


def test_peaks_of_a_tree_are_kept() -> None:
    memory = PeakMemory()
    hold = "import time; data = b'x' * 50_000_000; print(len(data), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory.look(process.pid)
        process.communicate(b"\n")
    memory.look(process.pid)
    assert 50e6 < memory.anonymous < memory.rss < 200e6


def test_children_end_with_their_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE) as process:
        limit = time.monotonic() + 20
        while len(members := tree(process.pid)) < 2:
            assert time.monotonic() < limit
        stop_tree(process.pid)
        process.wait()
    assert not any(p.is_running() and p.status() != "zombie" for p in members)
    stop_tree(process.pid)
