"""Qwen3-30B-A3B: 128 experts of width 768, 8 for a token; whole, and shared out among 4 ranks."""

from __future__ import annotations

import torch

from qwen3_ray.layers import triton_experts, triton_moe
from tests.gpu_compile.specimen import Specimen

HIDDEN_SIZE, SIZE, NUM_EXPERTS, TOP_K = 2_048, 768, 128, 8


def choose(dtype: str, num_rows: int, *, num_ranks: int = 1) -> Specimen:
    is_alone = num_rows <= 16
    return Specimen(
        kernel=triton_moe._choose,
        signature={
            "logits": f"*{dtype}",
            "experts": "*i32",
            "counts": "*i32",
            "sorted_rows": "*i32",
            "positions": "*i32",
            "weights": "*fp32",
            "tiles": "*i32",
            "num_tiles": "*i32",
            "num_rows": "i32",
            "first_expert": "i32",
        },
        constants={
            "num_experts": NUM_EXPERTS,
            "num_local_experts": NUM_EXPERTS // num_ranks,
            "top_k": TOP_K,
            "normalise": True,
            "is_alone": is_alone,
            "chunk_rows": 16 if is_alone else 32,
            "block_experts": NUM_EXPERTS,
            "tile_rows": 64,
        },
        num_warps=4 if is_alone else 8,
        name=f"{dtype}, {num_rows} rows, {num_ranks} ranks",
    )


def sort(num_ranks: int, tile_rows: int) -> Specimen:
    return Specimen(
        kernel=triton_moe._sort,
        signature={
            "experts": "*i32",
            "counts": "*i32",
            "sorted_rows": "*i32",
            "positions": "*i32",
            "tiles": "*i32",
            "num_tiles": "*i32",
            "num_rows": "i32",
            "num_chunks": "i32",
        },
        constants={
            "num_local_experts": NUM_EXPERTS // num_ranks,
            "top_k": TOP_K,
            "block_pairs": 32 * TOP_K,
            "chunk_rows": 32,
            "block_experts": NUM_EXPERTS // num_ranks,
            "tile_rows": tile_rows,
        },
        name=f"{num_ranks} ranks, tiles of {tile_rows}",
    )


def product(dtype: str, tile_rows: int, *, down: bool) -> Specimen:
    kernel = triton_experts._multiply_down if down else triton_experts._multiply_gate_up
    pointers = {
        "x": f"*{dtype}",
        "sorted_rows": "*i32",
        "tiles": "*i32",
        "num_tiles": "*i32",
        "weight": f"*{dtype}",
        "out": f"*{dtype}",
    }
    if down:
        del pointers["sorted_rows"]
    shape = triton_experts._shape(tile_rows, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    num_warps, num_stages = shape.pop("num_warps"), shape.pop("num_stages")
    return Specimen(
        kernel=kernel,
        signature=pointers,
        constants={"hidden_size": HIDDEN_SIZE, "size": SIZE, **shape},
        num_warps=num_warps,
        num_stages=num_stages,
        name=f"{dtype}, tiles of {tile_rows}",
    )


SPECIMENS = [
    choose("bf16", 16),
    choose("bf16", 256),
    choose("bf16", 16, num_ranks=4),
    choose("bf16", 256, num_ranks=4),
    choose("fp32", 256),
    sort(1, 64),
    sort(4, 128),
    *(
        product(dtype, tile_rows, down=down)
        for dtype in ("bf16", "fp32")
        for tile_rows in (64, 128)
        for down in (False, True)
    ),
    Specimen(
        kernel=triton_experts._combine,
        signature={"x": "*bf16", "positions": "*i32", "weights": "*fp32", "out": "*bf16"},
        constants={"hidden_size": HIDDEN_SIZE, "top_k": TOP_K, "block": 1_024},
    ),
]
