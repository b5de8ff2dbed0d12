"""The kernels against their oracles: their own tests, on this device."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.record import Record

ROOT = Path(__file__).parent.parent.parent
_OPTIONS = """[pytest]
addopts = --import-mode=importlib -p no:cacheprovider
pythonpath = .
markers =
    gpu: needs one CUDA device
    gpus2: needs two CUDA devices
    slow: minutes
"""
"""The project's own want plug-ins that a machine for measurements need not have."""
_MARKS = {"0": "not gpus2 and not slow", "1": "not gpu and not gpus2 and not slow"}
"""By TRITON_INTERPRET: tests of a GPU's size take an interpreter hours."""
_PACKAGES = ("pytest", "hypothesis")
_MAX_PROCESSES = 8
_PATH_VARIABLE = "GPU_CHECK_JOURNAL"  # pytest_journal's, which needs pytest to be imported
_RAN = (0, 1)
"""Exit statuses of pytest when tests ran, whether they passed or not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the tests of one process."""

    journal: list[dict[str, Any]]
    """See `pytest_journal`."""
    problem: str = ""
    """Why it did not run to its end."""
    is_late: bool = False
    """Whether it was ended because time was up."""


def kernel_tests() -> list[Path]:
    """One file for each module of kernels."""
    return sorted((ROOT / "tests/qwen3_ray").glob("**/test_triton_*.py"))


def run_kernel_tests(
    record: Record, deadline: Deadline, files: Sequence[Path], *, on_gpu: bool
) -> None:
    """The stage; on a GPU, tests that are not done in time have failed. Else they are interpreted.

    In processes of their own, which can be ended and leave this one's device as it was; a few,
    since most of the time goes into compiling.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        record.skip("kernel tests", f"no {' and no '.join(missing)}")
        return
    # Said to the tests, which would look for a GPU in their own way.
    interpret = "0" if on_gpu else "1"
    count = min(len(files), len(os.sched_getaffinity(0)), _MAX_PROCESSES)
    parts = [files[i::count] for i in range(count)]
    with ThreadPoolExecutor(max(1, count)) as pool:
        outcomes = list(pool.map(lambda part: _run(part, deadline.remaining_s, interpret), parts))
    num_tests = 0
    for outcome in outcomes:
        num_tests += _read(record, outcome.journal)
        if outcome.is_late and not on_gpu:
            record.skip(f"kernel tests from {outcome.problem} on", "no time left")
        elif outcome.problem:
            record.check("kernel tests run to their end", False, outcome.problem)
    record.check("kernel tests", num_tests > 0, f"{num_tests} of {len(files)} files")


def _run(files: Sequence[Path], seconds: float, interpret: str) -> Outcome:
    root = os.path.commonpath([ROOT, *files])  # pytest forgets the names of files elsewhere
    with tempfile.TemporaryDirectory() as directory:
        journal, settings = Path(directory, "journal"), Path(directory, "pytest.ini")
        settings.write_text(_OPTIONS)
        journal.touch()
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", str(settings), f"--rootdir={root}",
            "-p", "benchmarks.gpu.pytest_journal", "--continue-on-collection-errors",
            "-m", _MARKS[interpret], *map(str, files),
        ]  # fmt: skip
        is_late, problem = False, ""
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | {_PATH_VARIABLE: str(journal), "TRITON_INTERPRET": interpret},
                capture_output=True,
                text=True,
                check=False,
                timeout=max(1.0, seconds),
            )
            if done.returncode not in _RAN:
                problem = f"{done.stdout} {done.stderr}".strip()[-300:]
        except subprocess.TimeoutExpired:
            is_late = True
        entries = [json.loads(line) for line in journal.read_text().splitlines()]
    if is_late:
        begun = [entry["begins"] for entry in entries if "begins" in entry]
        problem = begun[-1] if begun else "the first"
    return Outcome(entries, problem, is_late)


def _read(record: Record, journal: Sequence[dict[str, Any]]) -> int:
    """Note what failed; the number of tests."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for entry in journal:
        if "test" in entry:
            file = entry["file"]
            counts[file] += 1
            seconds[file] += entry["seconds"]
            if entry["failed"]:
                record.check(f"{file}::{entry['test']}", False, entry["message"][:300])
    for file, count in counts.items():
        record.row("Kernel tests", file=file, tests=count, seconds=seconds[file])
    return counts.total()
