"""The products of Qwen3-4B, in both ways: a program for all splits of a tile, and for each."""

from typing import Any

import torch

from qwen3_ray.layers.triton_linear import BLOCK_N, SPLIT, block_k, merge_splits, multiply_tiles
from tests.gpu_compile.specimen import Specimen

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def specimen(
    name: str, width: int, *, dtype: str = "bf16", apart: bool = False, block_m: int = 64
) -> Specimen:
    step = block_k(DTYPES[dtype])
    constants: dict[str, Any] = {
        "in_features": width,
        "steps_per_program": SPLIT // step if apart else -(-width // step),
        "steps_per_split": SPLIT // step,
        "block_m": block_m,
        "block_n": BLOCK_N,
        "block_k": step,
    }
    return Specimen(
        kernel=multiply_tiles,
        signature={
            "x": f"*{dtype}",
            "weight": f"*{dtype}",
            "out": "*fp32" if apart else f"*{dtype}",
            "num_rows": "i32",
            "out_features": "i32",
        },
        constants=constants,
        num_warps=block_m // 16,
        num_stages=4 if block_m == 64 and not apart else 3,
        name=name,
    )


SPECIMENS = [
    specimen("apart, 2560 wide", 2560, apart=True),
    specimen("apart, 4096 wide", 4096, apart=True),
    specimen("apart, 9728 wide", 9728, apart=True),
    specimen("apart, 4864 wide: a split is half empty", 4864, apart=True),
    specimen("whole, 2560 wide", 2560),
    specimen("whole, 9728 wide", 9728),
    specimen("whole, 128 rows, 2560 wide", 2560, block_m=128),
    specimen("whole, 128 rows, 9728 wide", 9728, block_m=128),
    specimen("whole, 128 rows, 4864 wide", 4864, block_m=128),
    specimen("whole, a width of no whole steps", 2504),
    specimen("fp16", 2560, dtype="fp16"),
    specimen("fp16, apart", 2560, dtype="fp16", apart=True),
    specimen("fp32", 2560, dtype="fp32"),
    specimen("fp32, apart", 2560, dtype="fp32", apart=True),
    specimen("fp32, 128 rows", 2560, dtype="fp32", block_m=128),
    *(
        Specimen(
            kernel=merge_splits,
            signature={"partial": "*fp32", "out": "*bf16", "num_elements": "i32"},
            constants={"num_splits": num_splits, "block": 512},
            name=f"{num_splits} splits",
        )
        for num_splits in (5, 8, 19)
    ),
]
