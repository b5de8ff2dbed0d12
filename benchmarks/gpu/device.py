"""The device: what it is, what it can do at most, and how long work takes on it."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import torch

from benchmarks.limits import Machine

_PACKAGES = ("torch", "triton", "transformers", "safetensors", "tokenizers", "numpy")
_NUM_GROUPS = 3


def facts(device: torch.device) -> dict[str, str | int]:
    """Name, memory and versions; of a CPU its architecture."""
    found: dict[str, str | int] = {
        "device": platform.machine(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": str(torch.version.cuda),
        }
    return found | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def measure_ceilings(
    device: torch.device, *, num_bytes: int, matrix_size: int, budget_s: float
) -> Machine:
    """Bytes a second that a copy of `num_bytes` reads and writes, and a bf16 product's rate."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy_s = seconds_per_call(lambda: target.copy_(source), device, budget_s=budget_s)
    shape = (matrix_size, matrix_size)
    a, b = (torch.randn(shape, device=device).to(torch.bfloat16) for _ in range(2))
    product_s = seconds_per_call(lambda: a @ b, device, budget_s=budget_s)
    return Machine(read_bytes_per_s=2 * num_bytes / copy_s, flops=2 * matrix_size**3 / product_s)


def seconds_per_call(work: Callable[[], object], device: torch.device, *, budget_s: float) -> float:
    """Of calls queued one after the other: the median of a few groups, after two calls."""
    work()
    synchronize(device)
    once = _seconds(work, 1, device)
    count = max(1, round(budget_s / _NUM_GROUPS / max(once, 1e-6)))
    return statistics.median(_seconds(work, count, device) for _ in range(_NUM_GROUPS))


def _seconds(work: Callable[[], object], count: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    """Wait for what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give back a GPU's memory that is no longer used."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """That tensors may still take; on a CPU no limit is kept."""
    if device.type != "cuda":
        return 1 << 62
    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def is_lost(device: torch.device) -> bool:
    """Whether an error of the GPU has left this process unable to use it."""
    try:
        synchronize(device)
    except RuntimeError:
        return True
    return False
