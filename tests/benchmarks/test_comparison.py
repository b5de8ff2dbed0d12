"""Medians, ratios, table and chart of a comparison that was made up."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks import comparison_chart, comparison_table
from benchmarks.comparison import Comparison, Entry
from benchmarks.peers.contender import Facts
from benchmarks.peers.processes import PeakMemory
from benchmarks.peers.work import Case, Sample, Work

DECODE, HTTP = Case("decode", 8), Case("http", 16)


def sample(name: str, case: Case, number: int, foreign: float = 0.0, **values: float) -> Sample:
    return Sample(name, case.name, number, values, foreign)


SAMPLES = [
    *(sample("ours", DECODE, i, tokens_per_s=rate) for i, rate in enumerate((90.0, 120.0, 100.0))),
    *(sample("a", DECODE, i, tokens_per_s=rate) for i, rate in enumerate((50.0, 70.0, 60.0))),
    sample("b", DECODE, 0, 0.5, tokens_per_s=80.0),
    sample("ours", HTTP, 0, tokens_per_s=40.0, ttft_s=3.0, itl_s=0.2),
    sample("a", HTTP, 0, tokens_per_s=50.0, ttft_s=6.0, itl_s=0.1),
    sample("b", HTTP, 0, tokens_per_s=30.0, ttft_s=9.0, itl_s=0.3),
]
FACTS = Facts(
    version="1.0", start_s=[2.5, 9.0, 2.0], load_s=[1.5], memory=PeakMemory(3_000_000_000, 10**9)
)
COMPARISON = Comparison(
    date="2026-01-02",
    commit="abc1234",
    machine={"cpu": "CPU", "cores": 2, "flags": ["avx2"]},
    work=Work(),
    ours="ours",
    ceilings=[
        {"read_bytes_per_s": 3e10, "multiply_adds_flops": 2e11, "gemm_flops": 1.5e11},
        {"read_bytes_per_s": 2e10, "multiply_adds_flops": 1e11, "gemm_flops": 1.6e11},
    ],
    limits={DECODE.name: 200.0, HTTP.name: 80.0},
    entries=[
        Entry("ours", "offline", "fp16", FACTS),
        Entry("a", "offline", "fp16", Facts(version="7")),
        Entry("b", "offline", "fp32", Facts(version="8")),
        Entry("c", "offline", "fp32", Facts(), "not installed"),
    ],
    samples=SAMPLES,
)


def test_a_figure_is_the_median_of_its_rounds() -> None:
    assert COMPARISON.median("ours", DECODE, "tokens_per_s") == 100.0
    assert COMPARISON.num_rounds("ours", DECODE) == 3
    assert COMPARISON.median("b", Case("prefill"), "tokens_per_s") is None


def test_the_best_peer_is_the_fastest_for_rates_and_the_quickest_for_times() -> None:
    assert COMPARISON.best_peer(DECODE, "tokens_per_s") == ("b", 80.0)
    assert COMPARISON.ratio("ours", DECODE, "tokens_per_s") == 1.25
    assert COMPARISON.ratio("ours", HTTP, "ttft_s") == 0.5
    assert COMPARISON.ratio("ours", HTTP, "itl_s") == 2.0


def test_without_peers_there_is_no_ratio() -> None:
    alone = replace(COMPARISON, samples=[s for s in SAMPLES if s.contender == "ours"])
    assert alone.ratio("ours", DECODE, "tokens_per_s") is None


def test_contenders_and_cases_come_in_order_and_only_if_they_were_measured() -> None:
    assert COMPARISON.cases() == [DECODE, HTTP]
    assert COMPARISON.contenders(DECODE) == ["ours", "a", "b"]


def test_the_table_names_figures_disturbances_and_who_is_missing() -> None:
    lines = comparison_table.render(COMPARISON).splitlines()
    assert "30.0 GB/s" in lines[1]
    (ours,) = (line for line in lines if line.startswith("decode 8") and " ours " in line)
    assert ours.split()[3:] == ["fp16", "100.0", "50%", "1.25x", "3", "0.00"]
    assert any(line.startswith("decode 8") and line.endswith("0.50!") for line in lines)
    assert any(line.startswith("offline") and " 2.5 " in line and "3.00" in line for line in lines)
    assert "c (offline): not installed" in lines


def test_prefill_is_set_beside_the_matrix_product() -> None:
    prefill = Case("prefill")
    more = replace(
        COMPARISON,
        samples=[*SAMPLES, sample("ours", prefill, 0, tokens_per_s=100.0)],
        limits=COMPARISON.limits | {prefill.name: 200.0},
    )
    # Half of a limit that counts on 200 GFLOP/s, where products reach 160.
    assert "prefill of ours runs at 62% of" in comparison_table.render(more)


def test_the_document_holds_every_sample_and_is_json() -> None:
    document = json.loads(json.dumps(COMPARISON.document()))
    assert len(document["samples"]) == len(SAMPLES)
    assert document["entries"][0]["facts"]["memory"]["anonymous"] == 10**9


def test_the_chart_draws_each_median_as_a_share_of_its_limit() -> None:
    root = ElementTree.fromstring(comparison_chart.render(COMPARISON))
    tag = "{http://www.w3.org/2000/svg}"
    bars = [r for r in root.iter(f"{tag}rect") if r.get("height") == f"{comparison_chart.BAR:.1f}"]
    widths = [float(bar.get("width", "")) for bar in bars]
    full = widths[0] / 0.5  # 100 of 200 tokens/s
    assert widths == pytest.approx([full * s for s in (0.5, 0.3, 0.4, 0.5, 0.625, 0.375)], rel=1e-2)
    texts = [text.text for text in root.iter(f"{tag}text")]
    assert {"decode 8", "http 16", "ours", "100%"} <= set(texts)
