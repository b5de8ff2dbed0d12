"""Limits against figures that were worked out elsewhere, and the ceilings on small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ceilings
from benchmarks.limits import Machine, ModelCost, limit
from benchmarks.machine import describe, slug
from benchmarks.make_checkpoint import SHAPES
from benchmarks.peers.work import Case, Work

MACHINE = Machine(read_bytes_per_s=32.8e9, flops=190e9)
CPUINFO = """processor\t: 0
cpu family\t: 25
model name\t: Some(R) Core(TM) X9 CPU @ 2.00GHz
flags\t\t: fpu avx2 fma sse

processor\t: 1
model name\t: Some(R) Core(TM) X9 CPU @ 2.00GHz
flags\t\t: fpu avx2 fma sse
"""


@pytest.fixture
def cost(tmp_path: Path) -> ModelCost:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["0.6b"].config("bfloat16")))
    (tmp_path / "generation_config.json").write_text("{}")
    return ModelCost.of(tmp_path)


def test_parameters_are_those_of_the_published_model(cost: ModelCost) -> None:
    norms = 28 * (2 * 1_024 + 2 * 128) + 1_024
    assert cost.layer_params + cost.head_params + norms == 596_049_920


@pytest.mark.parametrize(
    ("case", "tokens_per_s"),
    [
        (Case("prefill"), 202),
        (Case("decode", 1), 27.1),
        (Case("decode", 8), 155),
        (Case("decode", 16), 155),
        (Case("http", 16), 63),
    ],
    ids=["prefill", "decode 1", "decode 8", "decode 16", "http 16"],
)
def test_limits_are_those_worked_out_for_the_first_machine(
    cost: ModelCost, case: Case, tokens_per_s: float
) -> None:
    assert limit(case, Work(), cost, MACHINE) == pytest.approx(tokens_per_s, rel=0.03)


def test_a_longer_context_is_read_and_computed(cost: ModelCost) -> None:
    more = cost.decode_bytes(2, 1_000, kv_bytes=4) - cost.decode_bytes(2, 0, kv_bytes=4)
    assert more == 2 * 1_000 * 229_376
    # Scores and weighted sums: two multiply-adds for each value of a head and token.
    operations = cost.decode_operations(2, 1_000) - cost.decode_operations(2, 0)
    assert operations == 2 * 1_000 * (28 * 16 * 128) * 4


def test_ceilings_are_rates_of_this_machine() -> None:
    found = ceilings.measure(num_bytes=1 << 20, num_multiply_adds=10_000, repeats=1)
    assert 0 < found.read_bytes_per_s < 1e13
    assert 0 < found.multiply_adds_flops < 1e14
    assert 0 < found.gemm_flops < 1e14


def test_the_loop_computes_every_multiply_add() -> None:
    """One that the compiler threw away would be a ceiling that nobody can reach."""
    short, long = (ceilings.chains_result(count) for count in (0, 2))
    assert short == pytest.approx(sum(range(ceilings.NUM_ACCUMULATORS)))
    expected = sum((i * 0.999 + 0.001) * 0.999 + 0.001 for i in range(ceilings.NUM_ACCUMULATORS))
    assert long == pytest.approx(expected, rel=1e-5)


def test_a_machine_has_a_name_for_files(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    machine = describe(tmp_path / "cpuinfo")
    assert machine["flags"] == ["avx2", "fma"]
    assert slug({**machine, "cores": 4}) == "some-core-x9-4-cores"
