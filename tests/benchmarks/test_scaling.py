"""Steps of the scaling benchmark, and the whole of it on a tiny shape."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks import scaling
from benchmarks.limits import Machine, ModelCost
from benchmarks.make_checkpoint import SHAPES, make_checkpoint
from qwen3_ray.runner.memory import KVLayout

RATES = Machine(read_bytes_per_s=3e10, flops=1.7e11)


def test_pairs_are_those_whose_blocks_fit() -> None:
    layout = KVLayout(
        num_layers=28, block_size=32, num_kv_heads=8, head_dim=128, dtype=torch.float32
    )
    found = scaling.pairs(layout, 8_000_000_000, scaling.BATCHES, scaling.CONTEXT_LENS)
    assert {(1, 32_768), (2, 16_384), (64, 512)} <= set(found)
    assert (2, 32_768) not in found
    assert len(found) == 28


def test_the_benchmark_runs_and_stores_table_and_chart(tmp_path: Path) -> None:
    make_checkpoint(SHAPES["tiny"], tmp_path / "model")
    rank = scaling.start(tmp_path / "model", 32_768 * 1_024)
    cost = ModelCost.of(tmp_path / "model")
    found = iter([RATES, Machine(read_bytes_per_s=2e10, flops=2e11)])
    wanted = [(1, 64), (1, 512), (3, 64)]
    points, rates = scaling.run(rank, cost, lambda: next(found), wanted, rounds=2)
    assert rates == Machine(read_bytes_per_s=3e10, flops=2e11)
    assert [(p.num_seqs, p.context_len, len(p.step_s)) for p in points] == [
        (1, 64, 2), (1, 512, 2), (3, 64, 2),
    ]  # fmt: skip
    assert all(p.ratio == p.median_s / max(p.bytes_s, p.operations_s) for p in points)
    assert all(0 < p.ratio_to_sum < p.ratio for p in points)
    assert points[1].bytes_s > points[0].bytes_s
    path = scaling.store(points, rates, "tiny", tmp_path / "results")
    assert len(json.loads(path.read_text())["points"]) == 3
    assert len(path.with_suffix(".txt").read_text().splitlines()) == 4
    ElementTree.fromstring(path.with_suffix(".svg").read_text())
