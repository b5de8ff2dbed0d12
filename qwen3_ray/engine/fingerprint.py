"""One string for all that the bits of an output depend on, the request aside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torch", "numba", "llvmlite", "triton", "llguidance")


def numerics_fingerprint(parts: Mapping[str, str | int | bool]) -> str:
    """Hex digest of `parts` and of this machine's: library versions and instruction set.

    `parts` are the engine's: the weights' manifest, dtypes, tensor-parallel degree, block size,
    kernels, sampling method. Two exact engines with one fingerprint compute the same bits. Thread
    counts are no part: no kernel's bits depend on them.
    """
    everything = {**parts, **{name: _version(name) for name in _PACKAGES}}
    text = json.dumps(everything, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def architecture_name(device: torch.device) -> str:
    """Instruction set of the CPU kernels, or name and compute capability of the GPU."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"
    return str(torch.backends.cpu.get_cpu_capability())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
