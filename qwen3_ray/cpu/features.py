"""What the kernels want of the CPU beyond its architecture's least."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping

from llvmlite import binding

from qwen3_ray.errors import ResourcesError

logger = logging.getLogger(__name__)


def check_features() -> None:
    """Tell if products will be slow here.

    Only x86 CPUs from before 2013, and virtual ones that hide what the machine has, lack anything.

    Raises:
        ResourcesError: products cannot be compiled at all.
    """
    if platform.machine() in {"x86_64", "AMD64"}:
        check_x86(binding.get_host_cpu_features())


def check_x86(features: Mapping[str, bool]) -> None:
    """As `check_features`, for a CPU with these features by LLVM's names.

    Without `fma` the C library makes each multiply-add, with the same bits. For `f16c`, the
    conversion of halves, there is nothing to take its place: a kernel with halves does not link.
    """
    if not features.get("f16c", False):
        raise ResourcesError(
            "device", "cpu", "this CPU, or the virtual machine's, cannot convert halves (F16C)"
        )
    if not features.get("fma", False):
        logger.warning(
            "this CPU, or the virtual machine's, has no fused multiply-add (FMA): "
            "products are many times slower"
        )
