"""The small steps between the products, with the shapes of Qwen3-4B and others."""

from __future__ import annotations

from qwen3_ray.layers.triton_rotary import qk_norm_rope_write_kernel
from qwen3_ray.layers.triton_rows import (
    add_rms_norm_kernel,
    launch_options,
    silu_and_mul_kernel,
)
from tests.gpu_compile.specimen import Specimen


def _norm(dtype: str, size: int) -> Specimen:
    block, num_warps = launch_options(size)
    pointer = f"*{dtype}"
    return Specimen(
        kernel=add_rms_norm_kernel,
        signature={
            "x": pointer,
            "residual": pointer,
            "weight": pointer,
            "out": pointer,
            "eps": "fp32",
        },
        constants={"size": size, "block": block},
        num_warps=num_warps,
        name=f"{dtype}-{size}",
    )


def _gate(dtype: str, size: int) -> Specimen:
    return Specimen(
        kernel=silu_and_mul_kernel,
        signature={"gate_up": f"*{dtype}", "out": f"*{dtype}"},
        constants={"size": size, "block": 1_024},
        name=f"{dtype}-{size}",
    )


def _rotary(dtype: str, cache: str, num_heads: int, num_kv_heads: int) -> Specimen:
    return Specimen(
        kernel=qk_norm_rope_write_kernel,
        signature={
            "qkv": f"*{dtype}",
            "positions": "*i32",
            "q_weight": f"*{dtype}",
            "k_weight": f"*{dtype}",
            "eps": "fp32",
            "cos_sin": "*fp32",
            "slot_mapping": "*i32",
            "q": f"*{dtype}",
            "keys": f"*{cache}",
            "values": f"*{cache}",
        },
        constants={
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": 128,
            "block_size": 16,
            "heads_block": 8,
        },
        num_warps=2,
        name=f"{dtype}-{cache}-{num_heads}-{num_kv_heads}",
    )


SPECIMENS = [
    _norm("bf16", 2_560),
    _norm("bf16", 1_024),
    _norm("bf16", 64),
    _norm("fp32", 8_192),
    _gate("bf16", 9_728),
    _gate("fp32", 9_728),
    _rotary("bf16", "bf16", 32, 8),
    _rotary("bf16", "fp32", 8, 1),
    _rotary("fp32", "fp32", 32, 8),
]
