"""Activations of Qwen3-4B as float8."""

from qwen3_ray.layers.triton_fp8 import launch_options, quantize_row
from tests.gpu_compile.specimen import Specimen

SPECIMENS = [
    Specimen(
        kernel=quantize_row,
        signature={"x": f"*{dtype}", "rows": "*fp8e4nv", "scales": "*fp32"},
        constants={"in_features": width, "width": width, "block": launch_options(width)[0]},
        num_warps=launch_options(width)[1],
        name=f"{dtype}, {width} wide",
    )
    for dtype, width in (("bf16", 2560), ("bf16", 4096), ("bf16", 9728), ("fp32", 25_600))
]
