"""When an output ends."""

from __future__ import annotations

from typing import NamedTuple

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled
from qwen3_ray.request import FinishReason


class End(NamedTuple):
    """Why an output ended, and the stop token id that ended it, if one did."""

    finish_reason: FinishReason
    stop_token_id: int | None = None


class EndRules:
    """The rules that hold for all requests of an engine.

    Args:
        eos_token_ids: the model's end-of-text tokens.
        max_len: tokens of prompt and output together that fit the context and the KV cache. The
            cache bounds the length too: a request that outgrew it alone could never go on.
    """

    def __init__(self, eos_token_ids: frozenset[int], max_len: int) -> None:
        self._eos_token_ids = eos_token_ids
        self._max_len = max_len

    def end_of(self, request: RequestState) -> End | None:
        """Why `request` ends with its last known token; None if it goes on.

        End-of-text and stop tokens up to the `min_tokens`-th token are tokens like others.
        """
        params, num_tokens = request.params, len(request.token_ids)
        num_output_tokens = num_tokens - request.prompt_len
        if num_output_tokens > params.min_tokens:
            token_id = request.token_ids[-1]
            if token_id in self._eos_token_ids and not params.ignore_eos:
                return End(FinishReason.STOP)
            if token_id in params.stop_token_ids:
                return End(FinishReason.STOP, token_id)
        max_tokens = params.max_tokens
        if num_tokens >= self._max_len or (
            max_tokens is not None and num_output_tokens >= max_tokens
        ):
            return End(FinishReason.LENGTH)
        return None

    def append(self, request: RequestState, result: Sampled) -> tuple[int, End | None]:
        """Append sampled tokens up to the one that ends the output; how many, and the end."""
        # There is an end before the first token if max_tokens is 0.
        end = self.end_of(request) if request.num_output_tokens == 0 else None
        num_appended = 0
        for token_id in result.token_ids:
            if end is not None:
                break
            request.token_ids.append(token_id)
            num_appended += 1
            end = self.end_of(request)
        if end is None and result.ended:
            end = End(FinishReason.STOP)
        return num_appended, end

    def num_tokens_left(self, request: RequestState) -> int:
        """How many more tokens may be sampled."""
        num_left = self._max_len - request.num_tokens
        if request.params.max_tokens is not None:
            num_left = min(num_left, request.params.max_tokens - request.num_output_tokens)
        return num_left
