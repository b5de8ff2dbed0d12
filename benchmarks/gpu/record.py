"""What stages find out: rows of tables, checks, what was left out and why."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.deadline import Deadline

Value = str | int | float | bool | None
Row = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class Record:
    """Of one stage. What it has is kept when the stage fails."""

    name: str
    seconds: float = 0.0
    problem: str | None = None
    """Where and how the stage failed."""
    tables: dict[str, list[Row]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why something was left out."""
    on_change: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    """Called when something was added."""

    def row(self, table: str, **values: Value) -> None:
        """Append to a table, which is made by its first row."""
        self.tables.setdefault(table, []).append(values)
        self.on_change()

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Note what must hold, and say so at once."""
        self.checks.append(Check(name, passed, detail))
        print(f"  {'ok' if passed else 'FAILED':6} {name}  {detail}".rstrip(), flush=True)
        self.on_change()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is raised in it is a check that did not pass, and the stage goes on.

        An error of the device itself ends the stage: nothing can be computed after it.
        """
        try:
            yield
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self.check(name, False, _where(error))

    def skip(self, what: str, why: str) -> None:
        """Note what was left out."""
        self.skipped[what] = why
        print(f"  skipped {what}: {why}", flush=True)
        self.on_change()

    @property
    def failed(self) -> bool:
        """Whether it ended early or a check did not pass."""
        return self.problem is not None or not all(check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the whole, with the time that it may take."""

    name: str
    seconds: float
    run: Callable[[Record, Deadline], None]


def run_stage(stage: Stage, deadline: Deadline, record: Record | None = None) -> Record:
    """Run one; whatever it raises is in its record, a new one unless it is given."""
    record = record or Record(stage.name)
    print(f"{stage.name}:", flush=True)
    start = time.monotonic()
    try:
        stage.run(record, deadline.part(stage.seconds))
    except Exception as error:
        record.problem = _where(error)
        print(f"  FAILED {record.problem}", flush=True)
    record.seconds = time.monotonic() - start
    return record


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {text:.300}"
