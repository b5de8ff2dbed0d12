"""How much each stage does: on a GPU, and where every program of a kernel is interpreted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shapes are named as in `make_checkpoint.SHAPES`; lengths are in tokens."""

    small: str
    """Of the model that is compared with transformers."""
    large: str
    max_shard_bytes: int
    """Of the small model's files; there must be two."""
    block_size: int
    seconds_a_case: float
    """For how long a step is repeated."""
    copy_bytes: int
    matrix_size: int
    prompt_lens: tuple[int, ...]
    """At the borders of blocks and beside them."""
    num_decodes: int
    """Tokens of each of these sequences that are given one by one."""
    chunks: tuple[tuple[int, ...], ...]
    """Sizes in which the longest prompt is computed; the last of each repeats."""
    num_companions: tuple[int, ...]
    """Sequences that are computed beside one."""
    decode_batches: tuple[int, ...]
    contexts: tuple[int, ...]
    small_batches: tuple[int, ...]
    small_context: int
    prefill_lens: tuple[int, ...]
    num_ranks: tuple[int, ...]
    num_jobs: int
    job_lens: tuple[int, int]
    baseline_batches: tuple[int, ...]
    baseline_lens: tuple[int, int]
    """Of the prompt and of the output."""


GPU = Sizes(
    small="0.6b",
    large="4b",
    max_shard_bytes=700 << 20,
    block_size=16,
    seconds_a_case=0.3,
    copy_bytes=4 << 30,
    matrix_size=8_192,
    prompt_lens=(1, 15, 16, 17, 63, 255, 256, 257, 900),
    num_decodes=64,
    chunks=((1, 256), (16,), (100, 7, 333)),
    num_companions=(1, 7, 30),
    decode_batches=(1, 8, 32, 64, 128, 256),
    contexts=(512, 2_048, 8_192),
    small_batches=(1, 32, 256),
    small_context=512,
    prefill_lens=(128, 512, 2_048, 8_192),
    num_ranks=(2, 4, 8),
    num_jobs=256,
    job_lens=(100, 1_024),
    baseline_batches=(1, 8),
    baseline_lens=(512, 64),
)
TINY = Sizes(
    small="tiny",
    large="tiny",
    max_shard_bytes=200 << 10,
    block_size=16,
    seconds_a_case=0.01,
    copy_bytes=1 << 20,
    matrix_size=64,
    prompt_lens=(1, 16, 17, 33),
    num_decodes=2,
    chunks=((1, 20),),
    num_companions=(3,),
    decode_batches=(1, 2),
    contexts=(16,),
    small_batches=(1,),
    small_context=16,
    prefill_lens=(16,),
    num_ranks=(2,),
    num_jobs=3,
    job_lens=(4, 8),
    baseline_batches=(1,),
    baseline_lens=(8, 4),
)
