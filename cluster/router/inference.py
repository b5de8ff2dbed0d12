"""What the router is asked and what it answers: values that both skins, HTTP and gRPC, share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from qwen3_ray.errors import RequestError
from qwen3_ray.model.generation_config import SamplingDefaults
from qwen3_ray.request import FinishReason, TokenLogprobs
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.validation import TruncationSide

MAX_CACHE_SALT_LENGTH = 1024

_DRAWN_SEED_LIMIT = 2**53  # every JSON reader keeps an integer below this one exactly
_MAX_PRIORITY = 2**31 - 1


def new_request_id() -> str:
    """An id that no other router draws."""
    return f"cmpl-{secrets.token_hex(16)}"


def draw_seed() -> int:
    """A seed for a request that came without one."""
    return secrets.randbelow(_DRAWN_SEED_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """One prompt and how to continue it. Checked when built.

    Raises:
        RequestError: a field is out of its range; names the field, the limit and the value.
    """

    model: str = ""
    """Name of the model; empty for the one that is served."""
    prompt: str | tuple[int, ...]
    params: SamplingParams
    echo: bool = False
    """The answer begins with the prompt."""
    truncate_prompt_tokens: int | None = None
    """Most tokens of the prompt to keep; -1 for as many as the context holds."""
    truncation_side: TruncationSide = "left"
    """Where tokens beyond that are cut off."""
    priority: int = 0
    """Lower comes first."""
    cache_salt: str = ""
    """Cached prompts are shared only within one salt."""
    request_id: str = field(default_factory=new_request_id, compare=False)

    def __post_init__(self) -> None:
        if self.params.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens", "must be at least 1 without echo, got 0")
        if not -_MAX_PRIORITY <= self.priority <= _MAX_PRIORITY:
            raise RequestError(
                "priority", f"must be from -{_MAX_PRIORITY} to {_MAX_PRIORITY}, got {self.priority}"
            )
        if len(self.cache_salt) > MAX_CACHE_SALT_LENGTH:
            raise RequestError(
                "cache_salt",
                f"may have {MAX_CACHE_SALT_LENGTH} characters, got {len(self.cache_salt)}",
            )
        if any("\ud800" <= character <= "\udfff" for character in self.cache_salt):
            raise RequestError("cache_salt", "must be Unicode text, got half a surrogate pair")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of one answer. Text may lag behind the ids: half characters are held back."""

    index: int = 0
    """Which of the answers to the prompt it belongs to."""
    is_first: bool = False
    """The answer's first piece: what is to be told of the prompt goes with it."""
    text: str
    """With the prompt's text in front on the first piece, if the request wants an echo."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids` if the request wants them, else none."""
    finish_reason: FinishReason | None = None
    """Set on the answer's last piece: STOP or LENGTH."""
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended the answer; None for end-of-text."""


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
    default_sampling: SamplingDefaults
    """Parameters of requests that leave them open, where they differ from OpenAI's."""
