"""Whether a request fits an engine: shared by `LLM` and the cluster's router, free of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from qwen3_ray.errors import PromptTooLongError, RequestError
from qwen3_ray.sampling_params import SamplingParams


def validate(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    max_model_len: int,
    vocab_size: int,
) -> SamplingParams:
    """Check a request against an engine's limits; return its params with `max_tokens` resolved.

    `max_tokens=None` becomes the room that the prompt leaves in the context.

    Raises:
        PromptTooLongError: the prompt leaves no room for one output token.
        RequestError: an empty prompt, a value that is not a token id of this model, or
            `max_tokens` beyond the room; names the parameter, the limit and the value.
    """
    if not prompt_token_ids:
        raise RequestError("prompt", "must hold at least one token")
    num_prompt_tokens = len(prompt_token_ids)
    room = max_model_len - num_prompt_tokens
    if room < 1:
        raise PromptTooLongError(
            "prompt",
            f"has {num_prompt_tokens} tokens; the context of {max_model_len} tokens "
            f"leaves room for at most {max_model_len - 1} and one output token",
        )
    _check_ids("prompt_token_ids", prompt_token_ids, vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    if params.max_tokens is None:
        return replace(params, max_tokens=room)
    if params.max_tokens > room:
        raise RequestError(
            "max_tokens",
            f"is {params.max_tokens}, but the prompt's {num_prompt_tokens} tokens leave room for "
            f"{room} in the context of {max_model_len} tokens",
        )
    return params


def draw_seed(base_seed: int, number: int) -> int:
    """Seed of the `number`-th request that came without one: a signed 64-bit hash of both.

    The same base seed and order of requests give the same seeds in every process.
    """
    digest = hashlib.blake2b(f"{base_seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_ids(param: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse what is not an integer (bool included) from 0 to below `vocab_size`."""
    for token_id in token_ids:
        if type(token_id) is not int:
            raise RequestError(param, f"each must be an integer, got {token_id!r:.80}")
        if not 0 <= token_id < vocab_size:
            raise RequestError(param, f"each must be from 0 to {vocab_size - 1}, got {token_id}")
