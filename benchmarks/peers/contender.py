"""What the benchmark asks of an engine, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.peers import places
from benchmarks.peers.processes import PeakMemory
from benchmarks.peers.work import Case, PromptSource

LAST_LINES = 12


class ContenderError(Exception):
    """A contender did not do its work; the text tells what it said last."""


@dataclass(slots=True)
class Facts:
    """What is known of a contender beside its speed."""

    version: str = ""
    start_s: list[float] = field(default_factory=list)
    """Of each start: from the process's beginning to ready; empty where none is of use."""
    load_s: list[float] = field(default_factory=list)
    """The part of it after the imports, where it is known."""
    memory: PeakMemory = field(default_factory=PeakMemory)
    idle_cores: float | None = None
    """Most that it used while others were measured; None if it was not up then."""


class Contender(Protocol):
    """One engine, from start to end."""

    name: str
    facts: Facts

    def start(self) -> None:
        """Blocks until it has computed something. Raises ContenderError."""

    def measure(self, case: Case, prompts: PromptSource) -> dict[str, float]:
        """Values of a sample. Raises ContenderError."""

    @property
    def pid(self) -> int | None:
        """Root of its processes, while one stays up."""

    def close(self) -> None:
        """End its processes; again: nothing happens."""


def log_path(name: str) -> Path:
    """Where a process of this name writes what it has to say."""
    directory = places.WORK_DIR / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{name}.log"


def last_lines(path: Path) -> str:
    """The end of a log, for an error."""
    lines = path.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"ended early; the end of {path}:", *lines])
