"""Edits and logprobs with the vocabulary of Qwen3-4B, in which the tokenizer knows fewer ids."""

from qwen3_ray.runner import triton_edits, triton_logprobs
from qwen3_ray.runner.triton_logits import CHUNK, chunks_of
from tests.gpu_compile.specimen import Specimen

CHUNKS = chunks_of(151_669, CHUNK)
EDITED = {"edited": "*fp32", "stride": "i32", "num_tokens": "i32"}
SCORED = {
    "logits": "*fp32",
    "stride": "i32",
    "num_tokens": "i32",
    "records": "*i64",
    "token_ids": "*i32",
    "num_top": "i32",
    "maxima": "*fp32",
    "sums": "*fp64",
    "num_better": "*i32",
}

SPECIMENS = [
    Specimen(
        kernel=triton_edits._mask,
        signature={
            "logits": "*fp32",
            "stride": "i32",
            "num_tokens": "i32",
            "records": "*i64",
            "masks": "*i32",
            "num_words": "i32",
            "edited": "*fp32",
            "edited_stride": "i32",
        },
        constants={"chunk_size": CHUNKS.size},
        num_warps=triton_edits._NUM_WARPS,
    ),
    *(
        Specimen(
            kernel=kernel,
            signature={"records": "*i64", entries: "*i64", **EDITED},
            constants={"block": triton_edits._BLOCK},
        )
        for kernel, entries in (
            (triton_edits._ban, "bans"),
            (triton_edits._bias, "biases"),
            (triton_edits._penalise, "seen"),
        )
    ),
    Specimen(
        kernel=triton_logprobs._score_chunks,
        signature={**SCORED, "top_values": "*fp32", "top_ids": "*i32"},
        constants={"num_chunks": CHUNKS.num, "chunk_size": CHUNKS.size},
        num_warps=triton_logprobs._NUM_WARPS,
    ),
    Specimen(
        kernel=triton_logprobs._score_rows,
        signature={
            **SCORED,
            "chunk_values": "*fp32",
            "chunk_ids": "*i32",
            "logprobs": "*fp32",
            "ranks": "*i64",
            "top_ids": "*i64",
            "top_logprobs": "*fp32",
        },
        constants={"num_chunks": CHUNKS.num, "padded": CHUNKS.padded},
        num_warps=triton_logprobs._NUM_WARPS,
    ),
]
