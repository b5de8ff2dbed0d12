"""What an engine tells about itself: fixed facts, and figures of the moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Facts that hold for the life of an engine."""

    model_name: str
    """Last part of the model directory's path."""
    numerics_fingerprint: str
    """Engines with equal ones compute equal bits, if both are `exact`."""
    exact: bool
    """A request's output does not depend on what it is computed with."""
    block_size: int
    max_model_len: int
    vocab_size: int
    """Prompts may hold ids below this."""
    tensor_parallel_size: int
    eos_token_ids: frozenset[int]
    weight_bytes_read: tuple[int, ...] = ()
    """Bytes of the checkpoint's tensors that each rank has read; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Load now, and totals since the start."""

    num_waiting_tokens: int = 0
    """Accepted tokens still to be computed before their requests' next output tokens."""
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    """0 to 1."""
    num_steps: int = 0
    num_prompt_tokens: int = 0
    """Prompt tokens computed, those computed anew after a preemption included."""
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_queries: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    num_prefix_hits: int = 0
    """Those that were found there."""
    num_draft_tokens: int = 0
    """Tokens guessed ahead."""
    num_accepted_tokens: int = 0
    """Those that were right."""
    numerics_fingerprint: str = ""
    """`EngineInfo.numerics_fingerprint`."""
