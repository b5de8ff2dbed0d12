"""The engine's mutable side of one request."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3_ray.sampling_params import SamplingParams


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
