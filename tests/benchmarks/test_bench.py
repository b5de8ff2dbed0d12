"""The comparison end to end, with ours alone on the demo model, as `make bench` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench, comparison_table
from benchmarks.bench import compare, store
from benchmarks.peers import contender, places
from benchmarks.peers.lineup import OURS, Lineup
from benchmarks.peers.work import Work, http_cases, offline_cases
from qwen3_ray.config import DEMO_MODEL_DIR

CEILINGS = {"read_bytes_per_s": 3e10, "multiply_adds_flops": 1.7e11, "gemm_flops": 1.9e11}
TINY = Work(
    prefill_len=32, prompt_len=8, output_len=6, batches=(1, 2), clients=(1, 2),
    max_model_len=128, first_token_id=4, last_token_id=900,
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contender.places, "WORK_DIR", tmp_path)
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
