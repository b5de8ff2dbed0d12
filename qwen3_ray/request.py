"""A request to an engine and the pieces of its answer: values, ids only, no text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

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
    choice: int = 0
    """Which of the `params.n` answers to the prompt this is: each draws its own random numbers."""
    output_token_ids: tuple[int, ...] = ()
    """Output made elsewhere before: the engine goes on after it, and counts it as output."""
    priority: int = 0
    """Lower comes first."""
    cache_salt: str = ""
    """Requests share cached blocks only with requests of the same salt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """How likely a token was in the model's own distribution, and what else was likely.

    Natural logarithms over the ids that the tokenizer knows, before penalties, masks and
    temperature; float32 values.
    """

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token; the lower id comes first among equals."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest ids with their logprobs, in order of rank, as many as were asked for."""


class TokenDelta(NamedTuple):
    """What one engine step added to one request. A tuple: each step makes one for each request.

    `stop_reason` is the stop token id or stop string that ended the output (None for EOS);
    `error` tells what went wrong when `finish_reason` is `ERROR`, and `error_param` which field
    of the request was at fault, if one was.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids` if the request wants them, else none."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """The next ones of the prompt's tokens, from its second on, if the request wants them."""
    num_cached_tokens: int | None = None
    """On a request's first delta: prompt tokens whose keys and values were in the cache."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    error_param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache held."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens
