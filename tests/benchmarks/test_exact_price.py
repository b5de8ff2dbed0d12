"""The comparison of exact and fast mode runs, on little work."""

from __future__ import annotations

import pytest

from benchmarks.exact_price import Price, Work, measure, print_table
from qwen3_ray.config import DEMO_MODEL_DIR


def test_both_modes_are_timed_on_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    works = (Work(1, 40, 1), Work(3, 8, 5))
    prices = measure(DEMO_MODEL_DIR, works, num_rounds=1)
    assert [price.work for price in prices] == list(works)
    assert all(price.exact > 0 and price.fast > 0 for price in prices)
    print_table(prices)
    header, prefill, decode = capsys.readouterr().out.splitlines()
    assert header.split() == ["work", "exact", "tok/s", "fast", "tok/s", "exact", "/", "fast"]
    assert prefill.startswith("prefill of 40 tokens")
    assert decode.startswith("decode, 3 streams")


def test_the_ratio_is_what_is_left_of_the_speed() -> None:
    assert Price(Work(1, 8, 1), exact=80.0, fast=100.0).ratio == pytest.approx(0.8)
