from __future__ import annotations

import json

from benchmarks import bench_check


def test_a_ratio_that_fell_by_more_than_a_quarter_is_told() -> None:
    baseline = {"a": 2.0, "b": 1.0, "gone": 3.0}
    measured = {"a": 1.49, "b": 0.75, "new": 1.0}
    assert bench_check.regressions(measured, baseline) == [
        "a: 1.49, was 2.00",
        "new: no baseline, run with --update",
    ]


def test_the_baseline_has_every_check() -> None:
    stored = json.loads(bench_check.BASELINE.read_text())
    assert len(stored) == len(bench_check.ROW_COUNTS) + 2 + len(bench_check.BATCHES)
    assert all(ratio > 0 for ratio in stored.values())
