"""What a step's result adds to an answer, as the engine's callers see it."""

from __future__ import annotations

from qwen3_ray.core.finish import End
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled
from qwen3_ray.request import TokenDelta

_NOTHING = Sampled()


def make_delta(
    request: RequestState,
    end: End | None,
    result: Sampled = _NOTHING,
    *,
    num_appended: int = 0,
    error: str | None = None,
) -> TokenDelta:
    """The delta for `request`, which got the first `num_appended` tokens of `result`.

    Notes that it was given out: a request's first delta says what the prefix cache held.
    """
    num_cached_tokens = None if request.has_answered else request.num_cached_tokens
    request.has_answered = True
    return TokenDelta(
        request_id=request.request_id,
        token_ids=result.token_ids[:num_appended],
        logprobs=result.logprobs[:num_appended],
        prompt_logprobs=result.prompt_logprobs,
        num_cached_tokens=num_cached_tokens,
        finish_reason=end and end.finish_reason,
        stop_reason=end and end.stop_token_id,
        error=error,
    )
