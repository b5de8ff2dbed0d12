"""Progress added up over ranks, and how it is shown on a pipe and on a terminal."""

from __future__ import annotations

import io

import pytest

from cluster.ops.display import BarDisplay, LineDisplay, Summary, make_display, summarise
from cluster.ops.progress import Progress


@pytest.mark.parametrize(
    ("entries", "summary"),
    [
        pytest.param({}, Summary(2), id="nobody yet"),
        pytest.param({"a/0": Progress("connect")}, Summary(2, 1, 0.0, 0), id="one connects"),
        pytest.param(
            {"a/0": Progress("load", 50, 100), "a/1": Progress("load", 0, 0)},
            Summary(2, 2, 0.25, 0),
            id="half of one",
        ),
        pytest.param(
            {"a/0": Progress("warm-up", 1, 3), "a/1": Progress("ready")},
            Summary(2, 2, 1.0, 1),
            id="all loaded",
        ),
        pytest.param(
            {f"a/{rank}": Progress("ready") for rank in range(4)},
            Summary(2, 2, 1.0, 2),
            id="a replica that started twice",
        ),
    ],
)
def test_ranks_add_up(entries: dict[str, Progress], summary: Summary) -> None:
    assert summarise(entries, 2) == summary


def test_lines_tell_each_change_once() -> None:
    stream = io.StringIO()
    with make_display(stream) as display:
        assert isinstance(display, LineDisplay)
        display.note("Starting Ray")
        for summary in (
            Summary(2),
            Summary(2, 1, 0.0, 0),
            Summary(2, 2, 0.3, 0),
            Summary(2, 2, 0.4, 0),
            Summary(2, 2, 1.0, 0),
            Summary(2, 2, 1.0, 2),
        ):
            display.show(summary)
    assert stream.getvalue().splitlines() == [
        "Starting Ray",
        "Ranks started: 1 of 2",
        "Ranks started: 2 of 2",
        "Weights loaded: 25 %",
        "Weights loaded: 100 %",
        "Warmed up: 0 of 2",
        "Warmed up: 2 of 2",
    ]


def test_a_terminal_gets_bars() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with make_display(stream) as display:
        assert isinstance(display, BarDisplay)
        display.note("Starting Ray")
        display.show(Summary(2, 1, 0.5, 0))
    for text in ("Starting Ray", "Ranks started", "Weights", "50%", "Warm-up", "0/2"):
        assert text in stream.getvalue()
