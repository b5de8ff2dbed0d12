"""The limits that `make test-4b` checks, without the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psutil
import pytest

from benchmarks import check_4b
from benchmarks.check_4b import Report, own_weight_bytes, problems, tree_pss_bytes
from benchmarks.make_checkpoint import SHAPES, make_checkpoint

SHARE = 4_022_861_824

GOOD = Report(
    shape="4b",
    tensor_parallel_size=2,
    load_s=60.0,
    peak_pss_gb=13.9,
    serving_pss_gb=10.0,
    weight_bytes_read=(SHARE, SHARE),
    own_weight_bytes=SHARE,
    prefill_tokens_per_s=10.0,
    decode_tokens_per_s=1.0,
    decode_tokens_per_s_of_8=5.0,
)


def test_a_run_within_its_limits_has_no_problem() -> None:
    assert problems(GOOD, 14.0) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"peak_pss_gb": 14.01}, "14.01 GB"),
        ({"weight_bytes_read": (SHARE, SHARE * 2)}, "rank 1 read"),
        ({"weight_bytes_read": (SHARE - 2, SHARE)}, "rank 0 read"),
        ({"weight_bytes_read": (SHARE,)}, "1 rank"),
    ],
)
def test_a_broken_limit_is_told(change: dict[str, object], expected: str) -> None:
    (problem,) = problems(dataclasses.replace(GOOD, **change), 14.0)
    assert expected in problem


def test_the_shares_of_all_ranks_are_the_matrices_once_and_the_vectors_each_time(
    tmp_path: Path,
) -> None:
    make_checkpoint(SHAPES["tiny"], tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    header_bytes = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    whole = file.stat().st_size - header_bytes
    assert own_weight_bytes(SHAPES["tiny"], 1) == whole
    vectors = sum(2 * size[0] for _, size in SHAPES["tiny"].tensors() if len(size) == 1)
    assert 2 * own_weight_bytes(SHAPES["tiny"], 2) == whole + vectors


def test_the_memory_of_this_process_is_seen() -> None:
    assert 0 < tree_pss_bytes() <= psutil.Process().memory_info().vms


def test_a_tiny_model_runs_and_each_of_two_ranks_reads_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_4b, "WORK_DIR", tmp_path)
    report = check_4b.measure("tiny", 2)
    assert problems(report, 14.0) == []
    assert report.weight_bytes_read == (own_weight_bytes(SHAPES["tiny"], 2),) * 2
    assert report.decode_tokens_per_s > 0
