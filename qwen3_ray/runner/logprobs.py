"""From the arrays of an outcome to the logprobs that a request gets."""

from __future__ import annotations

from collections.abc import Iterable

from qwen3_ray.request import TokenLogprobs
from qwen3_ray.runner.sampling_rows import Outcome


def logprobs_of(
    outcome: Outcome, rows: Iterable[int], num_top: int | None
) -> tuple[TokenLogprobs, ...]:
    """One for each of `rows`, with `num_top` likeliest ids; none if that is None."""
    if num_top is None:
        return ()
    return tuple(
        TokenLogprobs(
            token_id=int(outcome.token_ids[row]),
            logprob=float(outcome.logprobs[row]),
            rank=int(outcome.ranks[row]),
            top=tuple(
                zip(
                    outcome.top_ids[row, :num_top].tolist(),
                    outcome.top_logprobs[row, :num_top].tolist(),
                    strict=True,
                )
            ),
        )
        for row in rows
    )
