"""A plug-in of pytest: notes each test as it begins and ends, for whoever may have to end it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

PATH_VARIABLE = "GPU_CHECK_JOURNAL"


def pytest_runtest_logstart(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """A test begins."""
    _note({"begins": f"{Path(location[0]).stem}::{nodeid.rpartition('::')[2]}"})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A part of a test is over: its setup, itself, or what comes after it."""
    if report.when == "call" or report.failed:
        _note_end(report, seconds=report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file was read."""
    if report.failed:
        _note_end(report, seconds=0.0)


def _note_end(report: pytest.TestReport | pytest.CollectReport, *, seconds: float) -> None:
    errors = [line[1:].strip() for line in report.longreprtext.splitlines() if line[:1] == "E"]
    _note(
        {
            "file": Path(report.fspath).stem,
            "test": report.nodeid.rpartition("::")[2],
            "failed": report.failed,
            "seconds": seconds,
            "message": errors[0] if errors else "",
        }
    )


def _note(entry: dict[str, str | float | bool]) -> None:
    with Path(os.environ[PATH_VARIABLE]).open("a") as journal:
        journal.write(json.dumps(entry) + "\n")
