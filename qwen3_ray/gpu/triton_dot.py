"""Products of tiles."""

from __future__ import annotations

import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function


@device_function
def dot(a: tl.tensor, b: tl.tensor, total: tl.tensor) -> tl.tensor:
    """[m, k] and [k, n] of one dtype, and float32 [m, n] -> `a @ b + total`.

    float32 is multiplied as such, not as TF32.
    """
    return tl.dot(a, b, total, input_precision="ieee")
