"""Where the start of an engine goes, in seconds and memory: a fresh process for each model.

    python -m benchmarks.load_cost [--models demo 0.6b] [--cold]

Parts are in order and exclude each other; "other" is what lies between them. The second figure is
the time of all cores: half as long on two busy ones, or other processes were in the way. Memory is
the largest that was seen in samples of /proc/<pid>/status; KV blocks take none before they are
written. `--cold` starts with an empty cache of kernels, and names those that took longest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

SAMPLE_S = 0.01
NUM_KERNELS = 12
IMPORTS = (
    ("import torch", "torch"),
    ("import the engine", "qwen3_ray.engine.rank"),
    ("import the kernels", "qwen3_ray.layers.numba_kernels"),
)
PARTS = (
    ("connect", "qwen3_ray.engine.rendezvous", "Rendezvous.connect"),
    ("open files", "qwen3_ray.model.weights", "WeightReader"),
    ("vocabulary", "qwen3_ray.model.model_builder", "ModelBuilder._vocabulary"),
    ("layers", "qwen3_ray.model.model_builder", "ModelBuilder._layer"),
    ("rotary table", "qwen3_ray.model.model_builder", "build_cos_sin"),
    ("trial step", "qwen3_ray.engine.startup", "measure_step_bytes"),
    ("KV blocks", "qwen3_ray.engine.startup", "allocate_kv_caches"),
    ("tokenizer", "qwen3_ray.engine.rank", "find_tokenizer"),
    ("grammars", "qwen3_ray.engine.rank", "_grammars"),
    ("warm-up", "qwen3_ray.engine.group_executor", "GroupExecutor.warm_up"),
    ("fingerprint", "qwen3_ray.engine.rank", "_engine_info"),
)
"""Label, module and name of what is timed; no part calls another."""


@dataclass(slots=True)
class Cost:
    """Of one start."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of each part that took place, imports among them."""
    core_seconds: dict[str, float] = field(default_factory=dict)
    """Of all threads, of each part."""
    after_imports_s: float = 0.0
    kernels: dict[str, float] = field(default_factory=dict)
    """Seconds to compile each kernel that was not in the cache, what it calls included."""
    peak_anonymous_bytes: int = 0
    peak_resident_bytes: int = 0
    """Pages of mapped files included."""

    @property
    def other_s(self) -> float:
        """Time after the imports that no part accounts for."""
        imports = sum(self.seconds.get(label, 0.0) for label, _ in IMPORTS)
        return self.after_imports_s - (sum(self.seconds.values()) - imports)


def start(model_dir: Path) -> Cost:
    """Start an engine and stop it, in this process, which has imported none of it yet."""
    cost = Cost()
    for label, module in IMPORTS:
        with _clock(cost, label):
            import_module(module)
    for label, module, name in PARTS:
        _time_calls(cost, label, module, name)
    from numba.core import event  # noqa: PLC0415 - its import is timed

    engine_runs = import_module("benchmarks.engine_runs")
    config = import_module("qwen3_ray.config").EngineConfig(model_dir=model_dir, device="cpu")
    with event.install_recorder("numba:compile") as recorder:
        began = time.perf_counter()
        with engine_runs.running_engine(config):
            cost.after_imports_s = time.perf_counter() - began
    cost.kernels = _compile_times(recorder.buffer)
    return cost


@contextmanager
def _clock(cost: Cost, label: str) -> Iterator[None]:
    began, cores_began = time.perf_counter(), time.process_time()
    yield
    for times, seconds in (
        (cost.seconds, time.perf_counter() - began),
        (cost.core_seconds, time.process_time() - cores_began),
    ):
        times[label] = times.get(label, 0.0) + seconds


def _time_calls(cost: Cost, label: str, module: str, name: str) -> None:
    """Replace a function by one that adds up how long its calls take."""
    *path, last = name.split(".")
    owner: Any = import_module(module)
    for part in path:
        owner = getattr(owner, part)
    function: Callable[..., object] = getattr(owner, last)

    @wraps(function)
    def timed(*args: object, **kwargs: object) -> object:
        with _clock(cost, label):
            return function(*args, **kwargs)

    setattr(owner, last, timed)


def _compile_times(events: list[tuple[float, Any]]) -> dict[str, float]:
    """Of the outermost compilations among nested ones; threads do not compile at once."""
    times: dict[str, float] = {}
    began: list[float] = []
    for moment, found in events:
        if found.is_start:
            began.append(moment)
            continue
        seconds = moment - began.pop()
        if not began:
            name = found.data["dispatcher"].py_func.__qualname__
            times[name] = times.get(name, 0.0) + seconds
    return times


def measure(model_dir: Path, *, cold: bool) -> Cost:
    """Start in a process of its own, whose memory is watched from here."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "cost.json"
        if cold:
            os.environ["NUMBA_CACHE_DIR"] = directory
        process = multiprocessing.get_context("spawn").Process(
            target=_start_and_store, args=(model_dir, file)
        )
        process.start()
        peaks = {"RssAnon": 0, "VmHWM": 0}
        while process.is_alive():
            with suppress(OSError):  # it has just ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                for name, peak in peaks.items():
                    peaks[name] = max(peak, status_bytes(status, name))
            process.join(SAMPLE_S)
        if process.exitcode != 0:
            raise SystemExit(f"the start failed with {process.exitcode}")
        cost = Cost(**json.loads(file.read_text()))
    cost.peak_anonymous_bytes = peaks["RssAnon"]
    cost.peak_resident_bytes = peaks["VmHWM"]
    return cost


def _start_and_store(model_dir: Path, file: Path) -> None:
    file.write_text(json.dumps(asdict(start(model_dir))))


def status_bytes(status: str, name: str) -> int:
    """A field of /proc/<pid>/status; 0 where there is none."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def print_cost(name: str, cost: Cost) -> None:
    """One table."""
    print(f"{name}")
    labels = [label for label, *_ in (*IMPORTS, *PARTS)]
    for label in labels:
        if label in cost.seconds:
            cores = cost.core_seconds[label]
            print(f"  {label:<22} {cost.seconds[label]:8.3f} s {cores:8.3f} s of cores")
    print(f"  {'other':<22} {cost.other_s:8.3f} s")
    print(f"  {'ready after imports':<22} {cost.after_imports_s:8.3f} s")
    print(f"  {'peak anonymous memory':<22} {cost.peak_anonymous_bytes / 1e9:8.3f} GB")
    print(f"  {'peak resident memory':<22} {cost.peak_resident_bytes / 1e9:8.3f} GB")
    slowest = sorted(cost.kernels.items(), key=lambda item: -item[1])
    if slowest:
        print(f"  {len(slowest)} kernels compiled in {sum(cost.kernels.values()):.1f} s:")
    for kernel, seconds in slowest[:NUM_KERNELS]:
        print(f"    {kernel:<26} {seconds:8.3f} s")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["demo", "0.6b"])
    parser.add_argument("--cold", action="store_true", help="compile all kernels anew")
    args = parser.parse_args()
    for name in args.models:
        # Imported here: the children import on their own clock.
        found = import_module("benchmarks.engine_runs").model_dir(name)
        print_cost(name, measure(found, cold=args.cold))


if __name__ == "__main__":
    main()
