"""The work of one forward pass, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.request import TokenLogprobs


class ScheduledRequest(NamedTuple):
    """One request's part of a step. Valid until the step is committed."""

    request: RequestState
    num_new_tokens: int
    """Tokens to compute, from position `request.num_computed_tokens` on, drafts included."""
    num_drafts: int = 0
    """How many of them, the last ones, are `request.draft_token_ids`: guesses to be verified."""

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last known token, so that a next one is sampled."""
        request = self.request
        num_known = self.num_new_tokens - self.num_drafts
        return request.num_computed_tokens + num_known == len(request.token_ids)

    @property
    def num_sampled_rows(self) -> int:
        """Rows whose logits a token is sampled from: the last known token's, and the drafts'."""
        return 1 + self.num_drafts if self.samples else 0

    @property
    def prompt_logprob_rows(self) -> range:
        """Positions of this step whose logits say how likely the prompt token after them was."""
        request = self.request
        if request.params.prompt_logprobs is None:
            return range(0)
        first = max(request.num_computed_tokens, request.num_prompt_logprobs)
        stop = min(request.num_computed_tokens + self.num_new_tokens, request.prompt_len - 1)
        return range(first, max(first, stop))

    @property
    def logits_positions(self) -> tuple[int, ...]:
        """Positions whose logits are wanted: those for prompt logprobs, then the sampled ones."""
        stop = self.request.num_computed_tokens + self.num_new_tokens
        return (*self.prompt_logprob_rows, *range(stop - self.num_sampled_rows, stop))

    @property
    def num_logits(self) -> int:
        """How many `logits_positions` there are."""
        return len(self.prompt_logprob_rows) + self.num_sampled_rows


@dataclass(frozen=True, slots=True)
class Step:
    """The work of one forward pass."""

    scheduled: tuple[ScheduledRequest, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return sum(item.num_new_tokens for item in self.scheduled)


class Sampled(NamedTuple):
    """What a step gave one of its requests."""

    token_ids: tuple[int, ...] = ()
    """The drafts that were right and the token after them; empty if the request samples none.

    Where none could be sampled after a draft, that draft is the last one.
    """
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, if the request wants them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of the item's `prompt_logprob_rows`."""
    problem: str | None = None
    """Why no token could be sampled."""
    ended: bool = False
    """The form that the output must have is complete, and no token may follow."""

    def count_accepted(self, draft_token_ids: Sequence[int]) -> int:
        """How many of the drafts, from the first one on, were right.

        The last token is none of them, even where it is a draft after which nothing could be
        sampled: it is what the next step begins with.
        """
        if not draft_token_ids:
            return 0
        pairs = zip(draft_token_ids, self.token_ids[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
