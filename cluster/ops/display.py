"""What the command line shows while a cluster comes up: bars on a terminal, else plain lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cluster.ops.progress import Progress

_LINE_STEP = 25
"""Percent of the weights between two plain lines."""


@dataclass(frozen=True, slots=True)
class Summary:
    """All ranks together: counts of ranks, and the share of the weights that is loaded."""

    num_ranks: int
    num_started: int = 0
    loaded: float = 0.0
    num_ready: int = 0


def summarise(entries: Mapping[str, Progress], num_ranks: int) -> Summary:
    """Add up the ranks' own words; a rank that warms up has loaded all of its weights."""
    loaded = sum(map(_loaded, entries.values()))
    return Summary(
        num_ranks=num_ranks,
        num_started=min(len(entries), num_ranks),
        loaded=min(loaded / num_ranks, 1.0),
        num_ready=min(sum(entry.stage == "ready" for entry in entries.values()), num_ranks),
    )


def _loaded(entry: Progress) -> float:
    if entry.stage == "load":
        return entry.done / entry.total if entry.total else 0.0
    return 1.0 if entry.stage in ("warm-up", "ready") else 0.0


class Display(Protocol):
    """Shows how far the start is; a context manager."""

    def note(self, text: str) -> None:
        """Show one line that stays."""

    def show(self, summary: Summary) -> None:
        """Show the ranks' present state."""

    def close(self) -> None:
        """Take down what moves; lines may still be noted."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def make_display(stream: TextIO) -> Display:
    """Bars when `stream` is a terminal."""
    return BarDisplay(stream) if stream.isatty() else LineDisplay(stream)


class LineDisplay:
    """One line for each thing that changed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: set[str] = set()

    def note(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            print(text, file=self._stream, flush=True)

    def show(self, summary: Summary) -> None:
        percent = int(summary.loaded * 100) // _LINE_STEP * _LINE_STEP
        if summary.num_started:
            self.note(f"Ranks started: {summary.num_started} of {summary.num_ranks}")
        if percent:
            self.note(f"Weights loaded: {percent} %")
        if summary.loaded >= 1.0:
            self.note(f"Warmed up: {summary.num_ready} of {summary.num_ranks}")

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BarDisplay:
    """Three bars that fill: ranks, weights, warm-up."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            TextColumn("{task.fields[amount]:>8}"),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)

    def show(self, summary: Summary) -> None:
        total = summary.num_ranks
        self._set("Ranks started", summary.num_started / total, f"{summary.num_started}/{total}")
        self._set("Weights", summary.loaded, f"{summary.loaded:.0%}")
        self._set("Warm-up", summary.num_ready / total, f"{summary.num_ready}/{total}")

    def _set(self, name: str, done: float, amount: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=1.0, amount=amount)
        self._bars.update(self._tasks[name], completed=done, amount=amount)

    def close(self) -> None:
        self._bars.stop()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
