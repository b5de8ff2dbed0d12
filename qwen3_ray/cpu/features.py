"""What the kernels want of the CPU beyond its architecture's least."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from llvmlite import binding

FMA, F16C = "fma", "f16c"
"""Fused multiply-add, without which the C library computes it; conversion from and to halves."""


def missing_features() -> tuple[str, ...]:
    """Which of `FMA` and `F16C` this CPU lacks; only x86 before 2013, or a virtual CPU, does."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return ()  # no CPU that torch runs on lacks them
    return missing_from(binding.get_host_cpu_features())


def missing_from(features: Mapping[str, bool]) -> tuple[str, ...]:
    """As `missing_features`, of an x86 CPU with these features by LLVM's names."""
    return tuple(name for name in (FMA, F16C) if not features.get(name, False))
