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


class ItemRows(NamedTuple):
    """The rows of `item`: those that score its prompt, then those that sample."""

    item: ScheduledRequest
    prompt: range
    sampled: range
    problem: str | None
    """Why nothing can be sampled, whatever the logits are."""
    constraints: Constraints | None
    """Of the request, if it has any."""

    def result(self, outcome: Outcome, token_ids: Sequence[int]) -> Sampled:
        """What the request gets; `token_ids` are those of `outcome`."""
        if NUMERICAL_ERROR in [token_ids[row] for row in (*self.prompt, *self.sampled[:1])]:
            return Sampled(problem=_NOT_FINITE)
        if self.problem is not None:
            return Sampled(problem=self.problem)
        if self.sampled and token_ids[self.sampled[0]] == NOTHING_ALLOWED:
            return self._without_token()
        params = self.item.request.params
        kept = self.sampled[: self._num_right(token_ids)]
        return Sampled(
            token_ids=tuple(token_ids[row] for row in kept),
            logprobs=logprobs_of(outcome, kept, params.logprobs),
            prompt_logprobs=logprobs_of(outcome, self.prompt, params.prompt_logprobs),
        )

    def _without_token(self) -> Sampled:
        """Nothing is allowed: the output has ended if its form has."""
        try:
            if self.constraints is not None and self.constraints.is_complete():
                return Sampled(ended=True)
        except RequestError as error:
            return Sampled(problem=str(error))
        return Sampled(problem=_NOTHING_LEFT)

    def _num_right(self, token_ids: Sequence[int]) -> int:
        """How many rows to keep: drafts are right as long as they are what their row samples.

        A row that gives no token is no end: the next step begins with it, and ends with it too.
        """
        drafts = self.item.request.draft_token_ids[: self.item.num_drafts]
        for index, (row, draft) in enumerate(zip(self.sampled, drafts, strict=False)):
            if token_ids[row] < 0:
                return index
            if token_ids[row] != draft:
                return index + 1
        last_gives = self.sampled and token_ids[self.sampled[-1]] >= 0
        return len(self.sampled) if last_gives else max(0, len(self.sampled) - 1)
