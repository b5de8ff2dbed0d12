"""The GPU check: its floors against figures worked out elsewhere, and its stages on small sizes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import baselines, floors, report
from benchmarks.gpu.correctness import check_correctness
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.kernel_tests import run_kernel_tests
from benchmarks.gpu.record import Record, Stage, run_stage
from benchmarks.gpu.setup import Checkpoints, Setup
from benchmarks.gpu.sizes import TINY
from benchmarks.gpu.stages import stages
from benchmarks.gpu.tables import StepTables
from benchmarks.gpu.workload import jobs
from benchmarks.limits import Machine, ModelCost
from benchmarks.make_checkpoint import SHAPES
from qwen3_ray.attention.reference import ReferenceAttention

H100 = Machine(read_bytes_per_s=3.0e12, flops=798e12)
H200 = Machine(read_bytes_per_s=4.3e12, flops=790e12)
LONG = Deadline(1e6)


def cost(shape: str, directory: Path) -> ModelCost:
    (directory / "config.json").write_text(json.dumps(SHAPES[shape].config("bfloat16")))
    return ModelCost.of(directory)


@pytest.mark.parametrize(
    ("shape", "num_seqs", "context_len", "h100_ms", "h200_ms"),
    [
        ("4b", 1, 512, 2.71, 1.89),
        ("4b", 8, 2_048, 3.49, 2.43),
        ("4b", 32, 8_192, 15.6, 10.9),
        ("4b", 256, 512, 9.12, 6.37),
        ("0.6b", 1, 512, 0.42, 0.29),
        ("8b", 1, 512, 5.07, 3.54),
    ],
)
def test_floors_of_decode_steps(
    tmp_path: Path, shape: str, num_seqs: int, context_len: int, h100_ms: float, h200_ms: float
) -> None:
    for machine, expected in ((H100, h100_ms), (H200, h200_ms)):
        seconds = floors.decode_s(
            cost(shape, tmp_path), machine, num_seqs=num_seqs, context_len=context_len
        )
        assert 1e3 * seconds == pytest.approx(expected, abs=0.006 if expected < 10 else 0.06)


def test_eight_bit_linears_and_ranks_lower_the_floor(tmp_path: Path) -> None:
    model = cost("4b", tmp_path)
    whole = floors.decode_s(model, H100, num_seqs=1, context_len=512)
    eight_bits = floors.decode_s(model, H100, num_seqs=1, context_len=512, linear_bytes=1)
    shared = floors.decode_s(model, H100, num_seqs=1, context_len=512, num_ranks=4)
    assert whole - eight_bits == pytest.approx(3.633e9 / 3.0e12, rel=1e-3)
    assert shared == pytest.approx(whole / 4)


@pytest.mark.parametrize(
    ("num_tokens", "expected_ms"), [(512, 4.8), (2_048, 20.2), (8_192, 99), (32_768, 695)]
)
def test_floors_of_prompts(tmp_path: Path, num_tokens: int, expected_ms: float) -> None:
    seconds = cost("4b", tmp_path).prefill_s(num_tokens, H100)
    assert 1e3 * seconds == pytest.approx(expected_ms, rel=0.01)


def test_the_workload_is_nano_vllms() -> None:
    work = jobs()
    assert len(work) == 256
    assert sum(len(job.prompt) for job in work) == 142_827
    assert sum(job.output_len for job in work) == 133_966


@pytest.mark.parametrize(
    ("shape", "machine", "tokens_per_s", "kv_gb"),
    [
        ("0.6b", H100, 25_800, 19.4),
        ("4b", H100, 13_400, 24.9),
        ("8b", H100, 9_800, 24.9),
        ("0.6b", H200, 36_400, 19.4),
        ("4b", H200, 18_100, 24.9),
        ("8b", H200, 13_000, 24.9),
    ],
)
def test_floors_of_the_workload(
    tmp_path: Path, shape: str, machine: Machine, tokens_per_s: float, kv_gb: float
) -> None:
    work, model = jobs(), cost(shape, tmp_path)
    found = sum(job.output_len for job in work) / floors.workload_s(model, machine, work)
    assert found == pytest.approx(tokens_per_s, rel=0.005)
    assert floors.kv_bytes(model, work) / 1e9 == pytest.approx(kv_gb, abs=0.05)


def test_a_part_of_a_deadline_passes_no_later_than_the_whole() -> None:
    now = 10.0
    whole = Deadline(5, lambda: now)
    part, longer = whole.part(2), whole.part(9)
    assert part.has(2)
    assert not part.has(2.1)
    now = 13.0
    assert not part.has(0)
    assert longer.remaining_s == whole.remaining_s == 2


def test_a_stage_that_fails_keeps_what_it_found_and_says_where() -> None:
    def fail(record: Record, _deadline: Deadline) -> None:
        record.row("Some", a=1, b=2.5)
        record.check("fine", True)
        raise LookupError("lost\nin detail")

    record = run_stage(Stage("a stage", 1, fail), LONG)
    assert record.failed
    assert record.problem is not None
    assert record.problem.startswith("test_gpu_check.py:")
    assert record.problem.endswith("LookupError: lost")
    text = report.render([record])
    assert "a stage: FAILED, 1 of 1 checks" in text
    assert "lost" in text
    assert "2.5" in text


def test_a_part_that_fails_does_not_keep_others_from_running() -> None:
    record = Record("a stage")
    with record.part("a case"):
        raise torch.OutOfMemoryError("too large")
    (check,) = record.checks
    assert (check.name, check.passed) == ("a case", False)
    assert check.detail.endswith("OutOfMemoryError: too large")
    with pytest.raises(torch.AcceleratorError), record.part("another"):
        raise torch.AcceleratorError("an illegal memory access was encountered")


def test_tables_line_up_and_show_what_is_missing() -> None:
    rows = [{"mode": "fast", "ms": 1234.5}, {"mode": "exact", "ms": None, "count": 12_000}]
    assert report.table(rows).splitlines() == [
        "mode        ms   count",
        "fast   1,234.5       -",
        "exact        -  12,000",
    ]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    cpu = torch.device("cpu")
    checkpoints = Checkpoints(cpu, TINY.max_shard_bytes, tmp_path)
    return Setup(device=cpu, kernels="reference", sizes=TINY, checkpoints=checkpoints)


def test_the_model_of_plain_torch_is_found_right(setup: Setup) -> None:
    record = Record("correctness")
    with torch.no_grad():
        check_correctness(setup, record, LONG)
    assert not record.failed
    assert len(record.checks) >= 5


def test_the_model_of_wrong_attention_is_found_wrong(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = ReferenceAttention.attend
    monkeypatch.setattr(
        ReferenceAttention, "attend", lambda self, q, *rest: attend(self, 1.1 * q, *rest)
    )
    record = Record("correctness")
    with torch.no_grad():
        check_correctness(setup, record, Deadline(-1))
    failed = {check.name for check in record.checks if not check.passed}
    assert {"float32 logits", "float32 logits, exact", "float32 logits, fast"} <= failed
    assert record.skipped["exact mode against itself"] == "no time left"


def test_every_table_of_steps_is_filled(setup: Setup) -> None:
    record = Record("steps")
    with torch.no_grad():
        StepTables(setup, record, LONG).measure()
    decode, prefill = record.tables["Decode, tiny"], record.tables["Prefill, tiny"]
    assert {row["mode"] for row in decode} >= {"exact", "fast"}
    assert all(float(row["ms"] or 0) > 0 for row in decode)
    assert prefill
    shares = next(rows for title, rows in record.tables.items() if title.startswith("One rank"))
    # Two a layer, one for the embedding, and the logits.
    assert shares[0]["collectives"] == 6


def test_without_time_steps_are_left_out_by_name(setup: Setup) -> None:
    record = Record("steps")
    StepTables(setup, record, Deadline(-1)).measure()
    assert "Decode, tiny" not in record.tables
    assert set(record.skipped.values()) == {"no time left"}


def test_loading_the_workload_and_the_baselines_run(setup: Setup) -> None:
    by_name = {stage.name: stage for stage in stages(setup)}
    with torch.no_grad():
        records = [run_stage(by_name[name], LONG) for name in ("checkpoints", "workload")]
    assert not any(record.failed for record in records), [record.problem for record in records]
    (workload,) = records[1].tables.values()
    assert [row["mode"] for row in workload] == ["fast", "fast", "exact", "exact"]


def test_kernel_tests_that_fail_are_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_triton_good.py", tmp_path / "test_triton_bad.py"
    good.write_text("def test_one(): pass\n")
    bad.write_text("def test_two(): assert 1 == 2\n")
    record = Record("kernels")
    run_kernel_tests(record, LONG, [good, bad], on_gpu=False)
    assert [check.name for check in record.checks] == ["test_triton_bad::test_two", "kernel tests"]
    assert record.failed
    assert {row["file"] for row in record.tables["Kernel tests"]} == {good.stem, bad.stem}


@pytest.mark.parametrize("on_gpu", [True, False])
def test_kernel_tests_are_told_where_kernels_run(tmp_path: Path, on_gpu: bool) -> None:
    """Not left to find out: with the interpreter, kernels that do not compile would pass."""
    file = tmp_path / "test_triton_where.py"
    file.write_text(
        "import os, pytest\n@pytest.mark.gpu\ndef test_large(): pass\n"
        "def test_it():\n"
        f"    assert os.environ['TRITON_INTERPRET'] == '{int(not on_gpu)}'\n"
    )
    record = Record("kernels")
    run_kernel_tests(record, LONG, [file], on_gpu=on_gpu)
    assert not record.failed
    assert record.tables["Kernel tests"][0]["tests"] == 1 + on_gpu


@pytest.mark.parametrize("on_gpu", [True, False])
def test_kernel_tests_that_do_not_end_are_ended_and_named(tmp_path: Path, on_gpu: bool) -> None:
    slow = tmp_path / "test_triton_slow.py"
    slow.write_text("import time\ndef test_one(): pass\ndef test_two(): time.sleep(100)\n")
    record = Record("kernels")
    run_kernel_tests(record, Deadline(6), [slow], on_gpu=on_gpu)
    assert record.failed == on_gpu
    told = [check.detail for check in record.checks] if on_gpu else record.skipped
    assert any("test_two" in text for text in told)
    assert record.tables["Kernel tests"][0]["tests"] == 1


def test_a_file_that_does_not_import_has_failed(tmp_path: Path) -> None:
    file = tmp_path / "test_triton_bad.py"
    file.write_text("import nothing_of_that_name\n")
    record = Record("kernels")
    run_kernel_tests(record, LONG, [file], on_gpu=False)
    assert "nothing_of_that_name" in " ".join(check.detail for check in record.checks)
    assert record.failed


def test_the_command_stores_what_it_found(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--stages", "device",
        "--commit", "abc", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    (path,) = tmp_path.glob("*-abc-*.json")
    document = json.loads(path.read_text())
    assert document["commit"] == "abc"
    assert document["facts"]["torch"] == torch.__version__
    assert [stage["name"] for stage in document["stages"]] == ["device"]
    assert "device: ok" in done.stdout
    assert path.with_suffix(".txt").exists()


def test_lists_of_kernels_come_after_what_is_timed(setup: Setup) -> None:
    by_name = {stage.name: stage for stage in stages(setup)}
    assert list(by_name).index("kernel lists") > list(by_name).index("workload")
    with torch.no_grad():
        record = run_stage(by_name["kernel lists"], LONG)
    assert not record.failed, record.checks
    assert len(record.tables) == 2
    assert all(rows[-1]["kernel"] == "all" for rows in record.tables.values())


def test_transformers_is_timed_when_nothing_is_left_to_compile(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static cache that must be longer than the last one is compiled for anew."""
    calls: list[int] = []

    def generate(_self: object, _prompts: object, num_tokens: int) -> None:
        calls.append(num_tokens)

    for kind in (baselines._Plain, baselines._Continuous):
        monkeypatch.setattr(kind, "__call__", generate)
    monkeypatch.setattr(baselines, "time", SimpleNamespace(perf_counter=lambda: float(sum(calls))))
    record = Record("baselines")
    with torch.no_grad():
        baselines.measure_transformers(setup, record, LONG)
    assert calls[0] == max(calls) == TINY.baseline_lens[1]
    rows = record.tables["transformers, decoding greedily"]
    assert [row["step_ms"] for row in rows] == [1e3, 1e3]  # a second a token
    assert record.skipped == {}


def test_a_baseline_whose_time_does_not_grow_is_left_out(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (baselines._Plain, baselines._Continuous):
        monkeypatch.setattr(kind, "__call__", lambda *_: None)
    monkeypatch.setattr(baselines, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    record = Record("baselines")
    with torch.no_grad():
        baselines.measure_transformers(setup, record, LONG)
    assert record.tables == {}
    assert len(record.skipped) == 2


def test_it_needs_little_more_than_torch_and_transformers() -> None:
    blocked = ("pydantic", "ray", "grpc", "numba", "llvmlite", "llguidance", "psutil", "cluster")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\nimport benchmarks.gpu.run"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["pytest", "hypothesis"])
def test_without_what_they_need_kernel_tests_are_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda each: None if each == name else find(each)
    )
    record = Record("kernels")
    run_kernel_tests(record, LONG, [], on_gpu=False)
    assert record.skipped == {"kernel tests": f"no {name}"}
    assert record.checks == []
