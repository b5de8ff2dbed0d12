"""Forms that would harm the engine are tried out where they cannot, and refused in time."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text import grammar_checker
from qwen3_ray.text.grammar import GrammarCompiler
from qwen3_ray.text.grammar_checker import GrammarChecker
from qwen3_ray.text.tokenizer import Tokenizer

LIMIT_S = 2.5
WINDOW_S = 0.2
EASY = StructuredOutputs(regex="a+")


def chain_of_references(length: int) -> dict[str, Any]:
    """A schema whose definitions refer to each other, one array inside the other."""
    definitions: dict[str, Any] = {
        f"a{number}": {"type": "array", "items": {"$ref": f"#/$defs/a{number + 1}"}}
        for number in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": definitions | {f"a{length}": {"type": "integer"}}}


BOMBS: dict[str, dict[str, Any]] = {
    "nested parentheses": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "nested parentheses in EBNF": {"grammar": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "nested arrays": {"json": '{"items":' * 10_000 + "{}" + "}" * 10_000},
    "nested repetition": {"regex": "(a+)+$"},
    "enum": {"json": {"enum": [str(number) for number in range(100_000)]}},
    "choice": {"choice": [str(number) for number in range(100_000)]},
}
HIDDEN_BOMBS: dict[str, dict[str, Any]] = {
    "overflows the library's stack": {"json": chain_of_references(2000)},
    "intersects patterns": {
        "json": {
            "allOf": [
                {"type": "string", "pattern": f"(a|b)*a(a|b){{{number}}}"} for number in range(30)
            ]
        }
    },
    "counts to a million": {"json": {"type": "integer", "multipleOf": 1_000_003, "minimum": 0}},
    "repeats repetitions": {"regex": "((a{1,100}){1,100}){1,100}"},
    "chains rules": {
        "grammar": "root ::= r0\n"
        + "\n".join(f'r{number} ::= "x" r{number + 1} | root' for number in range(4000))
        + '\nr4000 ::= "y"'
    },
}
"""They are within all bounds that can be seen without the library."""


@pytest.fixture
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker()
    checker.lark_of(EASY)
    yield checker
    checker.close()


class Steps:
    """Small steps in a thread, which wait for the interpreter's lock as a model's steps do."""

    def __init__(self) -> None:
        self._count = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        numbers = np.ones(1 << 16, np.float32)
        while not self._is_over.is_set():
            for _ in range(20):
                np.sqrt(numbers, out=numbers)  # without the lock
            self._count += 1

    def rate(self, work: Callable[[], object]) -> float:
        """Steps a second while something else is done."""
        count, start = self._count, time.perf_counter()
        work()
        return (self._count - count) / (time.perf_counter() - start)

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()


def refusals(compiler: GrammarCompiler, form: dict[str, Any]) -> list[float]:
    """How long a form takes to be refused, again and again for a while."""
    times: list[float] = []
    while sum(times) < WINDOW_S:
        start = time.perf_counter()
        with pytest.raises(RequestError) as caught:
            compiler.compile(StructuredOutputs(**form))
        assert caught.value.param == "structured_outputs"
        times.append(time.perf_counter() - start)
    return times


def test_bombs_are_refused_in_time_and_steps_keep_their_pace() -> None:
    tokenizer = Tokenizer.load(DEMO_MODEL_DIR)
    compiler = GrammarCompiler(tokenizer, [], tokenizer.num_tokens)
    steps = Steps()
    times, quiet, bombed = [], [], []
    try:
        for number, form in enumerate([*BOMBS.values(), *HIDDEN_BOMBS.values()]):
            compiler.compile(StructuredOutputs(regex=f"b{number}"))  # a worker is there
            quiet.append(steps.rate(lambda: threading.Event().wait(WINDOW_S)))
            bombed.append(steps.rate(lambda form=form: times.extend(refusals(compiler, form))))
    finally:
        steps.stop()
        compiler.close()
    assert max(times) < LIMIT_S
    assert statistics.fmean(bombed) > statistics.fmean(quiet) / 3


def test_a_bomb_costs_nothing_but_its_worker(checker: GrammarChecker) -> None:
    for form in HIDDEN_BOMBS.values():
        with pytest.raises(RequestError, match="structured_outputs: "):
            checker.lark_of(StructuredOutputs(**form))
        assert "start: " in checker.lark_of(EASY)


def test_a_worker_is_used_again(checker: GrammarChecker) -> None:
    worker = checker._idle[0]
    for _ in range(3):
        checker.lark_of(EASY)
    with pytest.raises(RequestError, match="unclosed group"):
        checker.lark_of(StructuredOutputs(regex="("))
    assert checker._idle == [worker]


def test_a_worker_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, checker: GrammarChecker
) -> None:
    monkeypatch.setattr(grammar_checker, "CHECK_LIMIT_S", 0.2)
    os.kill(checker._idle[0]._process.pid, signal.SIGSTOP)
    with pytest.raises(RequestError, match=r"takes more than 0.2 s to compile"):
        checker.lark_of(EASY)
    monkeypatch.undo()
    assert "start: " in checker.lark_of(EASY)


def test_forms_are_tried_out_side_by_side(checker: GrammarChecker) -> None:
    larks: list[str] = []
    forms = [StructuredOutputs(regex=f"a{{{number}}}") for number in range(4)]
    threads = [
        threading.Thread(target=lambda form=form: larks.append(checker.lark_of(form)))
        for form in forms
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(larks)) == 4


def test_workers_end_with_the_checker_and_so_does_what_they_do(checker: GrammarChecker) -> None:
    process = checker._idle[0]._process
    os.kill(process.pid, signal.SIGSTOP)
    errors: list[RequestError] = []

    def ask() -> None:
        with pytest.raises(RequestError) as caught:
            checker.lark_of(EASY)
        errors.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    while checker._idle:
        time.sleep(0.001)
    checker.close()
    thread.join(LIMIT_S)
    assert len(errors) == 1
    assert process.poll() is not None
    assert checker._idle == []
    with pytest.raises(RequestError, match="has stopped"):
        checker.lark_of(EASY)
