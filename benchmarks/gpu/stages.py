"""The stages of `gpu_check`, in order, each with its share of nine minutes."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu import reference
from benchmarks.gpu.baselines import measure_transformers
from benchmarks.gpu.correctness import check_correctness
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import facts, release
from benchmarks.gpu.kernel_list import list_all
from benchmarks.gpu.kernel_tests import kernel_tests, run_kernel_tests
from benchmarks.gpu.offline import run_workloads
from benchmarks.gpu.record import Record, Stage
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.tables import StepTables


def stages(setup: Setup) -> list[Stage]:
    """All; each makes what it needs if those before it were left out."""
    # An interpreter needs longer, and has nothing to measure.
    correctness_s = 120 if setup.is_gpu else 200
    return [
        Stage("device", 30, lambda record, _: _device(setup, record)),
        Stage("checkpoints", 60, lambda record, _: _checkpoints(setup, record)),
        Stage("correctness", correctness_s, lambda *args: check_correctness(setup, *args)),
        Stage("kernels", correctness_s, lambda *args: _kernels(setup, *args)),
        Stage("steps", 160, lambda *args: StepTables(setup, *args).measure()),
        Stage("workload", 120, lambda *args: run_workloads(setup, *args)),
        Stage("kernel lists", 40, lambda *args: list_all(setup, *args)),
        Stage("baselines", 120, lambda *args: measure_transformers(setup, *args)),
    ]


CORRECTNESS = ("checkpoints", "correctness", "kernels")
"""What means something on any device."""


def guarded(stage: Stage) -> Stage:
    """Without gradients, and without memory that the stage before has left."""

    def run(record: Record, deadline: Deadline) -> None:
        release()
        with torch.no_grad():  # not inference mode: transformers' batches are another thread's
            stage.run(record, deadline)

    return Stage(stage.name, stage.seconds, run)


def _kernels(setup: Setup, record: Record, deadline: Deadline) -> None:
    run_kernel_tests(record, deadline, kernel_tests(), on_gpu=setup.is_gpu)


def _device(setup: Setup, record: Record) -> None:
    record.row("Device", **facts(setup.device))
    ceilings = setup.ceilings
    record.row(
        "Ceilings",
        copy_gb_per_s=ceilings.read_bytes_per_s / 1e9,
        bf16_tflops=ceilings.flops / 1e12,
    )


def _checkpoints(setup: Setup, record: Record) -> None:
    """Both are made; transformers and we load the small one from its files."""
    sizes = setup.sizes
    for shape in dict.fromkeys((sizes.small, sizes.large)):
        start = time.perf_counter()
        path = setup.checkpoints.of(shape)
        files = list(path.glob("*.safetensors"))
        record.row(
            "Checkpoints",
            shape=shape,
            files=len(files),
            bytes=sum(file.stat().st_size for file in files),
            made_s=time.perf_counter() - start,
        )
        record.check(f"{shape} in two files or more", len(files) > 1)
    path = setup.checkpoints.of(sizes.small)
    config = setup.config(sizes.small)
    start = time.perf_counter()
    theirs = reference.from_files(path, torch.bfloat16, setup.device)
    theirs_s = time.perf_counter() - start
    start = time.perf_counter()
    ours = setup.load(sizes.small, numerics="exact")
    ours_s = time.perf_counter() - start
    record.row("Loading", shape=sizes.small, ours_s=ours_s, transformers_s=theirs_s)
    same = (config.num_layers, config.vocab_size) == (ours.num_layers, theirs.config.vocab_size)
    record.check("both loaded the same model", same, ours.kernel_names)
