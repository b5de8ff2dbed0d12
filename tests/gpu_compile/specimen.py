"""One kernel at one set of types and constants, to be compiled without a GPU."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """A kernel as the engine launches it with Qwen3-4B's shapes, or another model's."""

    kernel: Any
    signature: dict[str, str]
    """Types of the parameters that are no constants: `*bf16` is a pointer, `i32` a number."""
    constants: dict[str, Any]
    """Values of the parameters that are compiled in."""
    num_warps: int = 4
    num_stages: int = 3
    enable_fp_fusion: bool = True
    """Whether products and sums that are not written as `fma` may become one."""
    name: str = ""
    """Tells specimens of one kernel apart."""
