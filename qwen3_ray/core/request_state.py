"""The engine's mutable side of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams


class Lookup(Protocol):
    """Guesses at one request's next tokens; `qwen3_ray.core.prompt_lookup.PromptLookup` is one."""

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `token_ids`: those of the last call and more."""

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Learn how many of the tokens proposed last were right."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class RequestState:
    """Token ids of one request and how many of them the KV cache already holds.

    A request whose gap is one token is decoding; a wider gap is prefill, a chunk of it or a
    resume after preemption. No phase flag exists. The scheduler alone changes a state.
    """

    request_id: str
    token_ids: list[int]
    """Prompt, then output."""
    prompt_len: int
    params: SamplingParams
    num_computed_tokens: int = 0
    """Keys and values of `token_ids[:num_computed_tokens]` are in the cache."""
    block_ids: list[int] = field(default_factory=list)
    """Block `i` holds the positions from `i * block_size` on."""
    choice: int = 0
    """Which of the answers to the prompt this is; a part of what random numbers follow from."""
    num_prompt_logprobs: int = 0
    """Prompt logprobs handed out so far."""
    draft_token_ids: list[int] = field(default_factory=list)
    """Guesses at the tokens that follow `token_ids`, for the step under way."""
    rank: tuple[int, int] = (0, 0)
    """Priority and number of arrival: the lower one of two requests comes first."""
    cache_salt: str = ""
    block_hashes: list[bytes] = field(default_factory=list)
    """Names in the prefix cache of the full blocks of `token_ids`, as far as computed."""
    cache_epoch: int = -1
    """Resets of the prefix cache before it got its blocks."""
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when it first began; None before."""
    lookup: Lookup | None = None
    """Where its drafts come from, if it gets any."""
    has_answered: bool = False
    """Whether a delta was given out."""

    @classmethod
    def of(cls, request: GenerateRequest, arrival: int) -> RequestState:
        """The state of the `arrival`-th request before its first step."""
        prompt_len = len(request.prompt_token_ids)
        state = cls(
            request_id=request.request_id,
            token_ids=[*request.prompt_token_ids, *request.output_token_ids],
            prompt_len=prompt_len,
            params=request.params,
            choice=request.choice,
            rank=(request.priority, arrival),
            cache_salt=request.cache_salt,
        )
        if request.output_token_ids:
            # They were handed out with or before the first output token.
            state.num_prompt_logprobs = prompt_len - 1
        return state

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.token_ids)

    @property
    def num_pending_tokens(self) -> int:
        """Known tokens that the cache does not hold yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_prompt_logprobs_left(self) -> int:
        """Prompt logprobs that are wanted and not handed out yet."""
        if self.params.prompt_logprobs is None:
            return 0
        return self.prompt_len - 1 - self.num_prompt_logprobs
