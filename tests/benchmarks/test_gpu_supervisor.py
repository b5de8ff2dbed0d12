"""Processes of the GPU check that end before their time, and what the next one finds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import run
from benchmarks.gpu.record import Record, Stage
from benchmarks.gpu.state import State
from benchmarks.gpu.supervisor import supervise

WORK = """
import sys
from pathlib import Path
log, work, ended = Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[5]
state = work / "state.json"
number = int(state.read_text()) if state.exists() else 0
log.open("a").write(f"{number} after {ended}\\n")
state.write_text(str(number + 1))
"""


def make_state(directory: Path, left: list[str]) -> State:
    return State(
        file=directory / "state.json",
        path=directory / "results" / "result.json",
        document={"commit": "abc"},
        left=left,
        ends=time.monotonic() + 100,
    )


def strictly(text: str) -> dict[str, list[dict[str, object]]]:
    """JSON as others read it, who know no NaN."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    found: dict[str, list[dict[str, object]]] = json.loads(text, parse_constant=refuse)
    return found


@pytest.mark.parametrize(
    ("last_words", "lines", "expected"),
    [
        # As an abort, a hang that the watchdog ended, or a device that is lost does.
        ("if number < 2: import os; os._exit(3)\n", ["0 after 0", "1 after 3", "2 after 3"], 1),
        ("if number < 1: import os; os.kill(os.getpid(), 9)\n", ["0 after 0", "1 after -9"], 1),
        ("", ["0 after 0"], 1),
    ],
)
def test_the_rest_is_done_by_another_process(
    tmp_path: Path, last_words: str, lines: list[str], expected: int
) -> None:
    script, log = tmp_path / "work.py", tmp_path / "log"
    script.write_text(f"{WORK}{last_words}(work / 'finished').touch()\nsys.exit(1)\n")
    assert supervise([sys.executable, str(script), str(log)]) == expected
    assert log.read_text().splitlines() == lines


def test_a_command_that_does_not_begin_is_not_repeated(tmp_path: Path) -> None:
    script, log = tmp_path / "work.py", tmp_path / "log"
    script.write_text(f"from pathlib import Path\nopen({str(log)!r}, 'a').write('x')\nexit(2)\n")
    assert supervise([sys.executable, str(script)]) == 2
    assert log.read_text() == "x"


def test_what_a_process_found_before_it_ended_is_kept(tmp_path: Path) -> None:
    state = make_state(tmp_path, ["first", "second", "third"])
    state.begin("first").check("fine", True)
    state.end()
    state.begin("second").row("Some", a=1, b=float("nan"))

    stored = strictly(state.path.read_text())
    assert stored["stages"][1]["tables"] == {"Some": [{"a": 1, "b": "nan"}]}
    assert "Some" in state.path.with_suffix(".txt").read_text()

    next_one = State.load(state.file)
    next_one.give_up(-11)
    assert next_one.left == ["third"]
    first, second = next_one.records
    assert not first.failed
    assert second.failed
    assert second.problem == "its process ended with status -11"
    assert [stage["problem"] for stage in strictly(state.path.read_text())["stages"]] == [
        None, second.problem,
    ]  # fmt: skip


def test_a_stage_is_not_begun_when_time_is_up(tmp_path: Path) -> None:
    state = make_state(tmp_path, ["late"])
    state.ends = time.monotonic()

    def fail(*_: object) -> None:
        raise AssertionError

    run._run_next(state, Stage("late", 10, fail), torch.device("cpu"))
    assert state.records[0].skipped == {"late": "no time left"}
    assert (state.left, state.under_way) == ([], None)


def test_a_stage_that_loses_the_device_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(run, "is_lost", lambda _device: True)
    monkeypatch.setattr("os._exit", ends.append)
    state = make_state(tmp_path, ["good", "bad"])
    cpu = torch.device("cpu")
    run._run_next(state, Stage("good", 10, lambda *_: None), cpu)
    assert not ends

    def fail(record: Record, _deadline: object) -> None:
        record.check("something", False)

    run._run_next(state, Stage("bad", 10, fail), cpu)
    assert len(ends) == 1
    assert State.load(state.file).under_way is None
