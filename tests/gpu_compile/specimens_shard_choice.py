"""Choosing tokens where each of four ranks has a quarter of Qwen3's vocabulary."""

from qwen3_ray.runner import triton_shard_choice
from tests.gpu_compile.specimen import Specimen

CHUNK = 4_096
SHARD = {"logits": "*fp32", "stride": "i32", "first_id": "i32", "num_known": "i32"}
ROWS = {
    "temperatures": "*fp32",
    "max_gaps": "*fp32",
    "seeds": "*i64",
    "positions": "*i32",
    "choices": "*i32",
}

SPECIMENS = [
    Specimen(
        kernel=triton_shard_choice._survey,
        signature={**SHARD, "keys": "*i64"},
        constants={"chunk_size": CHUNK},
        num_warps=8,
    ),
    Specimen(
        kernel=triton_shard_choice._draw,
        signature={**SHARD, **ROWS, "largest_keys": "*i64", "keys": "*i64"},
        constants={"chunk_size": CHUNK},
        num_warps=8,
    ),
    Specimen(
        kernel=triton_shard_choice._pick,
        signature={
            "temperatures": "*fp32",
            "largest_keys": "*i64",
            "drawn_keys": "*i64",
            "out": "*i32",
        },
        constants={},
    ),
]
