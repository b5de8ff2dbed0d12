"""The keyword arguments of `LLM`, with their types."""

from __future__ import annotations

from typing import TypedDict

from qwen3_ray.config import (
    Device,
    DType,
    GenerationDefaults,
    KVCacheDType,
    Numerics,
    Quantization,
)


class EngineOptions(TypedDict, total=False):
    """Settings of `LLM`; `EngineConfig` says what they mean and holds the defaults."""

    tensor_parallel_size: int
    device: Device
    dtype: DType
    quantization: Quantization
    kv_cache_dtype: KVCacheDType
    numerics: Numerics
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    kv_cache_memory: int | None
    block_size: int | None
    seed: int
    num_threads: int | None
    skip_tokenizer_init: bool
    enable_prefix_caching: bool
    num_speculative_tokens: int | None
    enforce_eager: bool
    generation_config: GenerationDefaults
