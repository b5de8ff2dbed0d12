"""A worker process: rates from what it tells, and what happens when it ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers import places
from benchmarks.peers.contender import ContenderError
from benchmarks.peers.work import Case, PromptSource, Work
from benchmarks.peers.worker_contender import WorkerContender
from benchmarks.peers.workers.protocol import of_steps, timed

WORK = Work(prefill_len=20, prompt_len=4, output_len=5)
FAKE_WORKER = """
import json, sys
print(json.dumps({"version": "1.2", "ready_s": 0.25}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    num = order["num_tokens"]
    assert all(len(prompt) for prompt in order["prompts"])
    if len(order["prompts"]) == 3:
        sys.exit("three are too many")
    answer = {"seconds": 1.0 + 0.5 * num}
    if len(order["prompts"]) == 2:
        answer |= {"first_s": 2.0, "num_after": 9}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerContender:
    monkeypatch.setattr(places, "WORK_DIR", tmp_path)
    package = tmp_path / "benchmarks" / "peers" / "workers"
    package.mkdir(parents=True)
    (package / "fake_worker.py").write_text(FAKE_WORKER)
    contender = WorkerContender(
        "fake", WORK, python=Path(sys.executable), module="fake_worker", model_dir=tmp_path,
        environment={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return contender


def test_rates_are_those_of_the_definitions(worker: WorkerContender) -> None:
    worker.start()
    try:
        assert worker.facts.version == "1.2"
        assert worker.facts.load_s == [0.25]
        assert worker.pid
        prompts = PromptSource(WORK, seed="0")
        prefill = worker.measure(Case("prefill"), prompts)
        assert prefill == {"tokens_per_s": 20 / 1.5}
        # 6 tokens take 4 s; the time of the first is asked for apart, or told.
        assert worker.measure(Case("decode", 1), prompts) == {"tokens_per_s": 5 / (4.0 - 1.5)}
        assert worker.measure(Case("decode", 2), prompts) == {"tokens_per_s": 9 / (4.0 - 2.0)}
    finally:
        worker.close()
    assert worker.pid is None
    worker.close()


def test_a_worker_that_ends_tells_why(worker: WorkerContender) -> None:
    worker.start()
    with pytest.raises(ContenderError, match="three are too many"):
        worker.measure(Case("decode", 3), PromptSource(WORK, seed="0"))
    worker.close()


def test_what_came_after_the_last_first_token_is_counted() -> None:
    def generate(_prompts: list[list[int]], _num_tokens: int) -> list[list[float]]:
        now = time.perf_counter()
        return [[now, now + 2, now + 3], [now + 1, now + 2, now + 3]]

    answer = timed(generate, [[1], [2]], 3)
    assert answer["first_s"] == pytest.approx(1.0, abs=0.5)
    assert answer["num_after"] == 4
    assert "first_s" not in timed(lambda _prompts, _num_tokens: [], [[1]], 3)


def test_steps_tell_arrivals_only_if_each_gave_a_token() -> None:
    assert of_steps([1.0, 2.0], 3, 2) == [[1.0, 2.0]] * 3
    assert of_steps([1.0, 2.0, 3.0], 3, 2) == []


def test_every_contender_gets_the_same_prompts_and_no_two_are_alike() -> None:
    one, other = (PromptSource(Work(), seed="3 decode 8") for _ in range(2))
    prompts = one.take(8, 128)
    assert prompts == other.take(8, 128)
    assert len({tuple(prompt[:32]) for prompt in (*prompts, *one.take(8, 128))}) == 16
