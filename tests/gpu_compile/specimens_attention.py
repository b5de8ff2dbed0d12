"""Paged attention of Qwen3-4B and of models with other groups of query heads."""

from qwen3_ray.attention.split_plan import Tile
from qwen3_ray.attention.triton_attention import attend
from qwen3_ray.attention.triton_paged import (
    EXACT_TILE,
    FLOAT32_TILE,
    LARGE_TILE,
    NARROWED_TILE,
    SMALL_TILE,
    WIDENED_TILE,
)
from qwen3_ray.attention.triton_splits import merge
from qwen3_ray.attention.triton_write import write_kv
from tests.gpu_compile.specimen import Specimen

HEAD_DIM, BLOCK_SIZE, NUM_KV_HEADS = 128, 16, 8
POINTERS = {"query_start_loc": "*i32", "seq_lens": "*i32", "partial_stats": "*fp32"}
NUMBERS = dict.fromkeys(("num_rows", "num_seqs", "split_blocks", "num_partials"), "i32")
LIMITS = {"min_rows": "i32", "max_rows": "i32"}


def attention(
    name: str,
    tile: Tile,
    *,
    dtype: str = "bf16",
    cache_dtype: str = "bf16",
    anchored: bool = False,
    **changes: int,
) -> Specimen:
    tensors = {"q": dtype, "out": dtype, "key_cache": cache_dtype, "value_cache": cache_dtype}
    return Specimen(
        name=name,
        kernel=attend,
        signature={
            **{tensor: f"*{kind}" for tensor, kind in tensors.items()},
            **POINTERS,
            **NUMBERS,
            **LIMITS,
            "block_tables": "*i32",
            "partial_totals": "*fp32",
            "table_width": "i32",
            "score_scale": "fp32",
        },
        constants={
            "head_dim": HEAD_DIM,
            "group": 4,
            "block_size": BLOCK_SIZE,
            "block_m": tile.block_m,
            "block_n": tile.block_n,
            "anchored": anchored,
            "tile_per_sequence": False,
            "is_large": False,
            **changes,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=not anchored,
    )


def merging(name: str, *, group: int = 4, padded_group: int = 4, **changes: int) -> Specimen:
    constants = {
        "head_dim": HEAD_DIM,
        "group": group,
        "padded_group": padded_group,
        "block_n": EXACT_TILE.block_n,
        "anchored": False,
        "tile_per_sequence": False,
    }
    return Specimen(
        name=name,
        kernel=merge,
        signature={
            **POINTERS,
            **NUMBERS,
            **LIMITS,
            "partial_totals": "*fp32",
            "out": "*bf16",
            "num_programs": "i32",
        },
        constants={**constants, **changes},
        enable_fp_fusion=not changes.get("anchored", False),
    )


def writing(name: str, dtype: str, cache_dtype: str) -> Specimen:
    pointers = {"k": dtype, "v": dtype, "key_cache": cache_dtype, "value_cache": cache_dtype}
    return Specimen(
        name=name,
        kernel=write_kv,
        signature={
            **{pointer: f"*{kind}" for pointer, kind in pointers.items()},
            "slot_mapping": "*i32",
        },
        constants={
            "num_kv_heads": NUM_KV_HEADS,
            "padded_heads": NUM_KV_HEADS,
            "head_dim": HEAD_DIM,
            "block_size": BLOCK_SIZE,
        },
    )


SPECIMENS = [
    *(attention(f"exact, group {g}", EXACT_TILE, anchored=True, group=g) for g in (1, 2, 4, 5, 8)),
    attention("exact, large cache", EXACT_TILE, anchored=True, is_large=True),
    *(
        attention(
            f"exact, mixed, group {g}", EXACT_TILE, anchored=True, tile_per_sequence=True, group=g
        )
        for g in (4, 5)
    ),
    attention("exact, fp16", EXACT_TILE, anchored=True, dtype="fp16", cache_dtype="fp16"),
    attention("exact, fp32", FLOAT32_TILE, anchored=True, dtype="fp32", cache_dtype="fp32"),
    *(attention(f"small, group {group}", SMALL_TILE, group=group) for group in (2, 4, 8)),
    attention("small, mixed", SMALL_TILE, tile_per_sequence=True),
    attention("small, large cache", SMALL_TILE, is_large=True),
    *(attention(f"large, group {group}", LARGE_TILE, group=group) for group in (2, 4, 8)),
    attention("large, large cache", LARGE_TILE, is_large=True),
    attention("fast, fp32", FLOAT32_TILE, dtype="fp32", cache_dtype="fp32"),
    attention("exact, fp32, bf16 cache", WIDENED_TILE, anchored=True, dtype="fp32"),
    attention("fast, fp32, bf16 cache", WIDENED_TILE, dtype="fp32"),
    attention("exact, fp32 cache", NARROWED_TILE, anchored=True, cache_dtype="fp32"),
    attention("small, fp32 cache", SMALL_TILE, cache_dtype="fp32"),
    attention("large, fp32 cache", LARGE_TILE, cache_dtype="fp32"),
    merging("exact", anchored=True),
    merging("fast"),
    merging("mixed", tile_per_sequence=True),
    merging("group 5", group=5, padded_group=8),
    writing("bf16", "bf16", "bf16"),
    writing("fp32, bf16 cache", "fp32", "bf16"),
]
