"""What the router is asked and what it answers: values that both skins, HTTP and gRPC, share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from qwen3_ray.request import FinishReason, Usage
from qwen3_ray.sampling_params import SamplingParams

_DRAWN_SEED_LIMIT = 2**53  # every JSON reader keeps an integer below this one exactly


def new_request_id() -> str:
    """An id that no other router draws."""
    return f"cmpl-{secrets.token_hex(16)}"


def draw_seed() -> int:
    """A seed for a request that came without one."""
    return secrets.randbelow(_DRAWN_SEED_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """One prompt and how to continue it."""

    model: str = ""
    """Name of the model; empty for the one that is served."""
    prompt: str | tuple[int, ...]
    params: SamplingParams
    request_id: str = field(default_factory=new_request_id, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer. Text may lag behind the ids: half characters are held back."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Set on the last chunk: STOP or LENGTH."""
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended the answer; None for end-of-text."""
    usage: Usage
    """Tokens up to and with this chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is served here. The engine's part is 0 or empty until a replica was reached."""

    model: str
    max_model_len: int
    vocab_size: int
    tensor_parallel_size: int
    numerics: str
    """`exact`, `fast`, or empty."""
    numerics_fingerprint: str
    version: str
    num_replicas: int
    """Replicas that this router can reach now."""
