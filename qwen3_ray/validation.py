"""Whether a request fits an engine, and what of it is decided before the engine takes it.

Shared by `LLM` and the cluster's router, free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from qwen3_ray.errors import PromptTooLongError, RequestError
from qwen3_ray.sampling_params import SamplingParams

TruncationSide = Literal["left", "right"]


def validate(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    max_model_len: int,
    vocab_size: int,
    output_token_ids: Sequence[int] = (),
) -> SamplingParams:
    """Check a request against an engine's limits; return its params with `max_tokens` resolved.

    `max_tokens=None` becomes the room that the prompt leaves in the context, and `top_k` beyond
    the vocabulary its size.

    Args:
        prompt_token_ids: the prompt.
        params: whose `bad_words` are resolved already.
        max_model_len: tokens of prompt and output that fit the context.
        vocab_size: ids are below this.
        output_token_ids: the beginning of the output, made elsewhere before.

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
    _check_ids("output_token_ids", output_token_ids, vocab_size)
    _check_params(params, vocab_size)
    if output_token_ids and params.n > 1:
        raise RequestError("n", f"must be 1 to go on after output_token_ids, got {params.n}")
    for name, num_tokens in (
        ("output_token_ids", len(output_token_ids)),
        ("max_tokens", params.max_tokens or 0),
    ):
        if num_tokens > room:
            raise RequestError(
                name,
                f"is {num_tokens}, but the prompt's {num_prompt_tokens} tokens leave room for "
                f"{room} in the context of {max_model_len} tokens",
            )
    if params.max_tokens is None:
        params = replace(params, max_tokens=room)
    return params if params.top_k <= vocab_size else replace(params, top_k=vocab_size)


def resolve_bad_words(
    params: SamplingParams, encode: Callable[[str], Sequence[int]]
) -> SamplingParams:
    """Params whose `bad_words` have become `bad_words_token_ids`.

    Each word is two sequences, as it is written and with a space before it. (vLLM leaves out the
    second one where it is longer or shorter than the first; words that are one token only after a
    space then get through.)

    Args:
        params: what a client asks for.
        encode: text to token ids, none added.
    """
    if not params.bad_words:
        return params
    sequences = dict.fromkeys(map(tuple, params.bad_words_token_ids))  # a set that keeps order
    for word in params.bad_words:
        text = word.lstrip() or word
        sequences |= dict.fromkeys(tuple(encode(spelling)) for spelling in (text, f" {text}"))
    return replace(params, bad_words=(), bad_words_token_ids=tuple(sequences))


def truncate_prompt(
    prompt_token_ids: Sequence[int],
    num_tokens: int | None,
    *,
    max_model_len: int,
    max_tokens: int | None,
    side: TruncationSide = "left",
) -> Sequence[int]:
    """At most `num_tokens` tokens of a prompt, as vLLM's `truncate_prompt_tokens` says.

    Args:
        prompt_token_ids: the whole prompt.
        num_tokens: None for all; -1 for as many as the context holds beside `max_tokens`.
        max_model_len: tokens of prompt and output that fit the context.
        max_tokens: what the request asks for; None counts as 1.
        side: where tokens are cut off; `left` keeps the last ones.

    Raises:
        RequestError: a value is out of its range.
    """
    if side not in get_args(TruncationSide):
        raise RequestError("truncation_side", f"must be left or right, got {side!r:.80}")
    if num_tokens is None:
        return prompt_token_ids
    if type(num_tokens) is not int or num_tokens < -1 or num_tokens == 0:
        raise RequestError(
            "truncate_prompt_tokens",
            f"must be -1 (what the context holds) or at least 1, got {num_tokens!r:.80}",
        )
    if num_tokens == -1:
        num_tokens = max(1, max_model_len - max(1, max_tokens or 1))
    return prompt_token_ids[-num_tokens:] if side == "left" else prompt_token_ids[:num_tokens]


def draw_seed(base_seed: int, number: int) -> int:
    """Seed of the `number`-th request that came without one: a signed 64-bit hash of both.

    The same base seed and order of requests give the same seeds in every process.
    """
    digest = hashlib.blake2b(f"{base_seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_params(params: SamplingParams, vocab_size: int) -> None:
    if params.bad_words:
        raise RequestError("bad_words", "needs a tokenizer, and this model has none")
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    _check_ids("allowed_token_ids", params.allowed_token_ids or (), vocab_size)
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    for sequence in params.bad_words_token_ids:
        _check_ids("bad_words_token_ids", sequence, vocab_size)


def _check_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Refuse what is not an integer (bool included) from 0 to below `vocab_size`."""
    for token_id in token_ids:
        if type(token_id) is not int:
            raise RequestError(param, f"each must be an integer, got {token_id!r:.80}")
        if not 0 <= token_id < vocab_size:
            raise RequestError(param, f"each must be from 0 to {vocab_size - 1}, got {token_id}")
