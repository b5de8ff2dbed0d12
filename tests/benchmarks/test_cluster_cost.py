from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.cluster_cost import describe, percentages, print_table, read_times


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        (["ray::ServeController.listen"], "ray::ServeController.listen"),
        (["/usr/lib/ray/raylet", "--port=1"], "raylet"),
        (["/venv/bin/python", "-u", "/ray/log_monitor.py", "--x"], "log_monitor.py"),
        ([], "?"),
    ],
)
def test_processes_are_named_by_what_they_are(command_line: list[str], name: str) -> None:
    assert describe(command_line) == name


def test_shares_are_of_a_core_and_of_what_was_spent_in_between() -> None:
    before = {1: ("a", 10.0), 2: ("b", 5.0)}
    after = {1: ("a", 12.0), 2: ("b", 5.0), 3: ("a", 1.0)}
    assert percentages(before, after, 4.0) == {"a": 75.0, "b": 0.0}


def test_a_child_that_works_is_seen() -> None:
    busy = "import sys; sum(range(30_000_000)); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        _, spent = read_times(os.getpid())[child.pid]
        child.kill()
    assert spent > 0.1


def test_the_table_adds_up_all_but_the_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"ray::RankWorker.run": 1.0, "raylet": 2.0}, {"ray::RankWorker.run": 170.0, "x": 3})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["ray::RankWorker.run", "1.0", "170.0"]
    assert lines[-1].split()[-2:] == ["2.0", "3.0"]
