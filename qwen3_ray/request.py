"""A request to an engine and the pieces of its answer: values, ids only, no text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qwen3_ray.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why an output ended. `ABORT` and `ERROR` never reach a client as an answer."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """What an engine needs to generate: token ids, and parameters whose seed is drawn."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """What one engine step added to one request.

    `stop_reason` is the stop token id or stop string that ended the output (None for EOS);
    `error` tells what went wrong when `finish_reason` is `ERROR`.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens
