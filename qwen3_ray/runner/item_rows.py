"""Where one scheduled request's rows are among all, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qwen3_ray.core.step import Sampled, ScheduledRequest
from qwen3_ray.errors import RequestError
from qwen3_ray.runner.constraints import Constraints
from qwen3_ray.runner.logprobs import logprobs_of
from qwen3_ray.runner.sampling_rows import NOTHING_ALLOWED, NUMERICAL_ERROR, Outcome

_NOT_FINITE = "numerical error: the model's logits are not all finite"
_NOTHING_LEFT = (
    "no token is allowed: structured_outputs, allowed_token_ids, bad_words, min_tokens and "
    "ignore_eos together leave none"
)


def simple_result(token_id: int) -> Sampled:
    """What a request gets that wants one token and nothing more; no token was banned."""
    return Sampled((token_id,)) if token_id >= 0 else Sampled(problem=_NOT_FINITE)


class ItemRows(NamedTuple):
    """The rows of `item`: from `start` on those that score its prompt, then those that sample."""

    item: ScheduledRequest
    start: int
    num_scored: int
    num_sampled: int
    problem: str | None
    """Why nothing can be sampled, whatever the logits are."""
    constraints: Constraints | None
    """Of the request, if it has any."""

    def result(self, outcome: Outcome, token_ids: Sequence[int]) -> Sampled:
        """What the request gets; `token_ids` are those of `outcome`."""
        params = self.item.request.params
        first = self.start + self.num_scored
        if self.num_sampled == 1 and not self.num_scored and params.logprobs is None:
            token_id = token_ids[first]  # what most requests get, in no more than it takes
            if token_id >= 0 and self.problem is None:
                return Sampled((token_id,))
        prompt, sampled = range(self.start, first), range(first, first + self.num_sampled)
        if NUMERICAL_ERROR in [token_ids[row] for row in (*prompt, *sampled[:1])]:
            return Sampled(problem=_NOT_FINITE)
        if self.problem is not None:
            return Sampled(problem=self.problem)
        if sampled and token_ids[first] == NOTHING_ALLOWED:
            return self._without_token()
        kept = sampled[: self._num_right([token_ids[row] for row in sampled])]
        return Sampled(
            token_ids=tuple(token_ids[row] for row in kept),
            logprobs=logprobs_of(outcome, kept, params.logprobs),
            prompt_logprobs=logprobs_of(outcome, prompt, params.prompt_logprobs),
        )

    def _without_token(self) -> Sampled:
        """Nothing is allowed: the output has ended if its form has."""
        try:
            if self.constraints is not None and self.constraints.is_complete():
                return Sampled(ended=True)
        except RequestError as error:
            return Sampled(problem=str(error))
        return Sampled(problem=_NOTHING_LEFT)

    def _num_right(self, sampled: Sequence[int]) -> int:
        """How many to keep of what the rows gave: drafts are right as long as they are that.

        A row that gives no token is no end: the next step begins with it, and ends with it too.
        """
        drafts = self.item.request.draft_token_ids[: self.item.num_drafts]
        for index, (token_id, draft) in enumerate(zip(sampled, drafts, strict=False)):
            if token_id < 0:
                return index
            if token_id != draft:
                return index + 1
        last_gives = sampled and sampled[-1] >= 0
        return len(sampled) if last_gives else max(0, len(sampled) - 1)
