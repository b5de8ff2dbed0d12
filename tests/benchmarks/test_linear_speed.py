from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import linear_speed
from qwen3_ray.cpu.thread_pool import ThreadPool

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="there is no FBGEMM here"
)


def test_products_of_many_weights_are_compared() -> None:
    ours, theirs = linear_speed.make_products(64, 32, ThreadPool(1), 40_960)
    assert len(ours) == len(theirs) == 10
    x = torch.randn(12, 64)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own(x), other(x))
    assert not torch.equal(ours[0](x), ours[1](x))
    ratio = linear_speed.compare(ours, theirs, x, 1)
    assert ratio.times > 0
    assert ratio.same_bits
    assert not linear_speed.compare(ours, theirs[1:], x, 1).same_bits


def test_the_benchmark_prints_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(linear_speed, "WEIGHT_BYTES", 1)
    arguments = ["--shapes", "64x32", "48x80", "--rows", "1", "6", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["linear_speed", *arguments])
    linear_speed.main()
    lines = capsys.readouterr().out.splitlines()
    assert "FBGEMM's time over ours" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["rows", "1", "6"]
    assert all(len(line.split()) == 3 for line in lines[1:])
