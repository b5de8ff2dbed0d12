"""Which kernels a step consists of, and how long each takes: where time goes beside the floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import release
from benchmarks.gpu.graphs import DecodeStep
from benchmarks.gpu.record import Record
from benchmarks.gpu.setup import Setup
from qwen3_ray.config import Numerics

_NUM_RUNS = 3
_NUM_LISTED = 14
_LONGEST_NAME = 60
_SECONDS_A_LIST = 15.0
_MODES: tuple[Numerics, ...] = ("fast", "exact")


def list_all(setup: Setup, record: Record, deadline: Deadline) -> None:
    """The stage: a decode step of the large model in each mode.

    After all that is timed: what profiles may slow a device down from then on.
    """
    shape, num_seqs = setup.sizes.large, setup.sizes.decode_batches[0]
    context_len = setup.sizes.contexts[0]
    for numerics in _MODES:
        release()
        title = f"Kernels of a decode step, {shape}, {numerics}, {num_seqs} x {context_len}"
        if not deadline.has(_SECONDS_A_LIST):
            record.skip(title, "no time left")
            continue
        with record.part(title):
            model = setup.load(shape, numerics=numerics)
            step = DecodeStep(setup, model, num_seqs, context_len)
            step.run()
            list_kernels(setup, record, title, step.run)
            del model, step


def list_kernels(setup: Setup, record: Record, title: str, step: Callable[[], object]) -> None:
    """Run `step` a few times and note its kernels, those that take longest first.

    On a CPU, torch's operators stand for kernels.
    """
    activities = [ProfilerActivity.CUDA if setup.is_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(_NUM_RUNS):
            step()
        if setup.is_gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if setup.is_gpu else DeviceType.CPU
    found: list[tuple[float, int, str]] = []
    for entry in profiler.key_averages():
        micros = entry.self_device_time_total if setup.is_gpu else entry.self_cpu_time_total
        if entry.device_type == wanted and micros > 0:
            found.append((micros / _NUM_RUNS, round(entry.count / _NUM_RUNS), entry.key))
    found.sort(reverse=True)
    for micros, count, name in found[:_NUM_LISTED]:
        record.row(title, kernel=name[:_LONGEST_NAME], launches=count, us=micros)
    record.row(
        title,
        kernel="all",
        launches=sum(count for _, count, _ in found),
        us=sum(micros for micros, _, _ in found),
    )
