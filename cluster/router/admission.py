"""What follows when a replica does not take a request: another try, or which error. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_ray.errors import OverloadedError, UnavailableError

Refusal = OverloadedError | UnavailableError
"""Reasons before the first token for which another replica may still take the request."""

MAX_LOST = 3
"""A request that lost this many replicas before its first token may be what broke them."""


def may_try_again(refusals: Sequence[Refusal]) -> bool:
    """Whether the request may go to a replica that has not refused it."""
    return sum(isinstance(refusal, UnavailableError) for refusal in refusals) < MAX_LOST


def verdict(refusals: Sequence[Refusal]) -> Refusal:
    """The error for the client once nobody is left to ask.

    Overload wins over absence, with the shortest wait that a replica named: there is a replica,
    and it will have room.
    """
    waits = [error.retry_after_s for error in refusals if isinstance(error, OverloadedError)]
    if waits:
        return OverloadedError(
            f"all replicas are full; try again in {min(waits):g} s", retry_after_s=min(waits)
        )
    if refusals:
        return refusals[-1]
    return UnavailableError("no replica is ready")
