"""Turns and rounds, and the comparison end to end with ours alone on the demo model."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from benchmarks import bench, comparison_table
from benchmarks.bench import Participant, Run, compare, store
from benchmarks.peers import places
from benchmarks.peers.contender import ContenderError, Facts
from benchmarks.peers.lineup import OURS, PEERS, Lineup
from benchmarks.peers.work import Case, PromptSource, Work, http_cases, offline_cases
from qwen3_ray.config import DEMO_MODEL_DIR

CEILINGS = {"read_bytes_per_s": 3e10, "multiply_adds_flops": 1.7e11, "gemm_flops": 1.9e11}
TINY = Work(
    prefill_len=32, prompt_len=8, output_len=6, batches=(1, 2), clients=(1, 2),
    max_model_len=128, first_token_id=4, last_token_id=900,
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "WORK_DIR", tmp_path)
    monkeypatch.setattr(places, "PEERS_DIR", tmp_path / "peers")
    monkeypatch.setattr(bench, "_ceilings", lambda: CEILINGS)


def test_ours_is_measured_offline_and_over_http_and_the_result_is_stored(tmp_path: Path) -> None:
    comparison = compare(
        Lineup(TINY, DEMO_MODEL_DIR),
        ["transformers"],
        phases=bench.PHASES,
        rounds=1,
        slow_rounds=1,
    )
    cases = [*offline_cases(TINY), *http_cases(TINY)]
    assert [sample.case for sample in comparison.samples] == [case.name for case in cases]
    assert all(sample.values["tokens_per_s"] > 0 for sample in comparison.samples)
    assert all(0 < s.values["ttft_s"] < 10 for s in comparison.samples if "http" in s.case)
    problems = {(entry.name, entry.phase): entry.problem for entry in comparison.entries}
    assert problems[OURS, "offline"] is problems[OURS, "http"] is None
    assert "not installed" in (problems["transformers", "offline"] or "")
    facts = {entry.phase: entry.facts for entry in comparison.entries if entry.name == OURS}
    assert 10e6 < facts["offline"].memory.anonymous < facts["offline"].memory.rss
    path = store(comparison, tmp_path / "results")
    assert len(json.loads(path.read_text())["samples"]) == len(cases)
    assert path.with_suffix(".svg").read_text().endswith("</svg>\n")
    assert path.with_suffix(".txt").read_text() == comparison_table.render(comparison) + "\n"


class FakeContender:
    """Writes down what it is asked for; fails at the cases in `fails_at`."""

    def __init__(self, name: str, calls: list[str], fails_at: str = "") -> None:
        self.name = name
        self.facts = Facts()
        self.pid: int | None = None
        self._calls = calls
        self._fails_at = fails_at

    def start(self) -> None:
        self.pid = os.getpid()
        self._calls.append(f"{self.name} starts")

    def measure(self, case: Case, prompts: PromptSource) -> dict[str, float]:
        self._calls.append(f"{self.name} {case.name}")
        if case.name == self._fails_at:
            raise ContenderError("no more")
        return {"tokens_per_s": float(len(prompts.take(1, 2)))}

    def close(self) -> None:
        if self.pid is not None:
            self._calls.append(f"{self.name} ends")
        self.pid = None


def run_phase(*participants: Participant) -> Run:
    run = Run(TINY, lambda: CEILINGS)
    run.phase(participants, [Case("prefill"), Case("decode", 2)])
    return run


def test_contenders_take_turns_within_each_round_and_slow_ones_leave_early() -> None:
    calls: list[str] = []
    a, b = FakeContender("llama.cpp", calls), FakeContender("vllm", calls)
    run = run_phase(Participant(a, "offline", 2), Participant(b, "offline", 1))
    assert calls == [
        "llama.cpp starts", "vllm starts",
        "llama.cpp prefill", "llama.cpp decode 2", "vllm prefill", "vllm decode 2", "vllm ends",
        "llama.cpp prefill", "llama.cpp decode 2", "llama.cpp ends",
    ]  # fmt: skip
    assert len(run.ceilings) == 2
    assert a.facts.memory.rss > 0
    assert a.facts.idle_cores is not None
    assert [sample.round for sample in run.samples] == [0, 0, 0, 0, 1, 1]


def test_servers_are_up_for_their_own_turn_alone() -> None:
    calls: list[str] = []
    a, b = FakeContender("llama.cpp", calls), FakeContender(OURS, calls)
    run_phase(*(Participant(one, "http", 2, stays=False) for one in (a, b)))
    one_round = ["llama.cpp starts", "llama.cpp ends", f"{OURS} starts", f"{OURS} ends"]
    assert [call for call in calls if call.split()[-1] in {"starts", "ends"}] == 2 * one_round


def test_one_that_fails_is_out_and_the_others_go_on() -> None:
    calls: list[str] = []
    a, b = FakeContender("llama.cpp", calls, "prefill"), FakeContender("vllm", calls)
    run = run_phase(Participant(a, "offline", 2), Participant(b, "offline", 2))
    assert calls.count("llama.cpp prefill") == 1
    assert calls.count("llama.cpp ends") == 1
    assert {sample.contender for sample in run.samples} == {"vllm"}
    assert [entry.problem for entry in run.entries] == ["no more", None]


def test_peers_are_named_with_commas() -> None:
    assert bench._peer_names("none") == []
    assert bench._peer_names("vllm,llama.cpp") == ["vllm", "llama.cpp"]


def test_a_peer_that_nobody_knows_is_refused() -> None:
    assert "openvino" in PEERS
    with pytest.raises(argparse.ArgumentTypeError, match="no such peer: lama"):
        bench._peer_names("lama")
