"""What processes use is seen, and they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.peers.processes import Meter, PeakMemory, cpu_seconds, stop_tree, tree

BUSY = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


def test_work_of_this_tree_is_not_foreign_and_work_of_others_is() -> None:
    with Meter() as own:
        subprocess.run([sys.executable, "-c", BUSY], check=True)
    began = cpu_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process, Meter(process.pid) as other:
        end = time.process_time() + 0.4
        while time.process_time() < end:
            pass
    assert cpu_seconds(os.getpid()) - began >= 0.4
    assert other.foreign_cores > 0.3
    assert own.foreign_cores >= 0.0


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
        while len(processes := tree(process.pid)) < 2:
            assert time.monotonic() < limit
        stop_tree(process.pid)
        process.wait()
    assert not any(p.is_running() and p.status() != "zombie" for p in processes)
    stop_tree(process.pid)
