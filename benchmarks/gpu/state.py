"""What a run knows so far, in a file from which another process can go on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from benchmarks.gpu import report
from benchmarks.gpu.record import Check, Record


@dataclass(slots=True, kw_only=True)
class State:
    """Of one run."""

    file: Path
    """Where it is kept while it runs."""
    path: Path
    """Of the result; the same as text lies beside it."""
    document: dict[str, object]
    """What is said of the run as a whole."""
    left: list[str]
    """Stages that were not begun."""
    ends: float
    """By the machine's clock, when all must be over."""
    records: list[Record] = field(default_factory=list)
    """Of stages that were begun."""
    under_way: str | None = None

    @classmethod
    def load(cls, file: Path) -> Self:
        """As it was stored."""
        stored = json.loads(file.read_text())
        records = [
            Record(**(values | {"checks": [Check(**check) for check in values["checks"]]}))
            for values in stored.pop("records")
        ]
        return cls(**stored | {"path": Path(stored["path"])}, file=file, records=records)

    @property
    def remaining_s(self) -> float:
        """Until all must be over."""
        return self.ends - time.monotonic()

    def begin(self, name: str) -> Record:
        """A stage begins; what it adds to its record is stored at once."""
        self.left.remove(name)
        self.under_way = name
        self.records.append(Record(name, on_change=self.store))
        self.store()
        return self.records[-1]

    def end(self) -> None:
        """The stage has ended."""
        self.under_way = None
        self.store()

    def give_up(self, status: int) -> None:
        """The process ended with `status` during the stage that is under way, if one is."""
        if self.under_way is not None:
            self.records[-1].problem = f"its process ended with status {status}"
            self.end()

    def store(self) -> None:
        """For the next process, and as results."""
        records = [_values(record) for record in self.records]
        state = {
            "path": str(self.path), "document": self.document, "left": self.left,
            "ends": self.ends, "records": records, "under_way": self.under_way,
        }  # fmt: skip
        _write(self.file, json.dumps(state))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, json.dumps(_finite(self.document | {"stages": records}), indent=1) + "\n")
        _write(self.path.with_suffix(".txt"), report.render(self.records) + "\n")


def _values(record: Record) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in fields(Record) if f.name != "on_change"}
    return values | {"checks": [_check_values(check) for check in record.checks]}


def _check_values(check: Check) -> dict[str, object]:
    return {"name": check.name, "passed": check.passed, "detail": check.detail}


def _finite(value: object) -> object:
    """JSON has no words for NaN and infinity: they become text."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    """At once: a process may end at any time."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)
