"""Sampling from the vocabulary of Qwen3-4B, in which the tokenizer knows fewer ids."""

from typing import Any

from qwen3_ray.runner import triton_choice, triton_cut
from qwen3_ray.runner.triton_candidates import gather_candidates, tally_chunks
from qwen3_ray.runner.triton_logits import CHUNK, chunks_of
from tests.gpu_compile.specimen import Specimen

CHUNKS = chunks_of(151_669, CHUNK)
SIZES: dict[str, Any] = {"num_chunks": CHUNKS.num, "padded": CHUNKS.padded}
CHUNK_SIZE = {"chunk_size": CHUNKS.size}
LOGITS = {"logits": "*fp32", "stride": "i32", "num_tokens": "i32"}
CUTS = {"temperatures": "*fp32", "max_gaps": "*fp32", "top_ks": "*i32", "top_ps": "*fp32"}
SEEDS = {"seeds": "*i64", "positions": "*i32", "choices": "*i32"}
TALLY = {"survey": "*fp32", "counts": "*i32", "masses": "*i64"}
DRAWN = {"scores": "*fp32", "drawn_ids": "*i32"}

SPECIMENS = [
    *(
        Specimen(
            kernel=triton_choice._survey,
            signature={
                **LOGITS,
                "logits": dtype,
                "is_edited": "i32",
                "values": "*fp32",
                "token_ids": "*i32",
            },
            constants={"num_chunks": CHUNKS.num, **CHUNK_SIZE},
            num_warps=triton_choice._NUM_WARPS,
            name=dtype,
        )
        for dtype in ("*fp32", "*bf16")
    ),
    Specimen(
        kernel=triton_choice._draw,
        signature={
            **LOGITS,
            **CUTS,
            **SEEDS,
            "survey": "*fp32",
            "lowest_kept": "*fp32",
            "last_kept_ids": "*i32",
            **DRAWN,
        },
        constants={**SIZES, **CHUNK_SIZE},
        num_warps=triton_choice._NUM_WARPS,
    ),
    Specimen(
        kernel=triton_choice._pick,
        signature={
            "temperatures": "*fp32",
            "survey": "*fp32",
            "survey_ids": "*i32",
            **DRAWN,
            "out": "*i32",
        },
        constants=SIZES,
    ),
    Specimen(
        kernel=tally_chunks,
        signature={**LOGITS, **CUTS, **TALLY},
        constants={**SIZES, **CHUNK_SIZE, "tile": triton_cut._TILE},
        num_warps=triton_cut._NUM_WARPS,
    ),
    Specimen(
        kernel=gather_candidates,
        signature={**LOGITS, **CUTS, **TALLY, "candidates": "*i32"},
        constants={**SIZES, **CHUNK_SIZE},
        num_warps=triton_cut._NUM_WARPS,
    ),
    Specimen(
        kernel=triton_cut._finish,
        signature={
            **LOGITS,
            **CUTS,
            **TALLY,
            "candidates": "*i32",
            "lowest": "*fp32",
            "last_ids": "*i32",
        },
        constants=SIZES,
        num_warps=triton_cut._FINISH_WARPS,
    ),
]
