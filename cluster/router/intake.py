"""From what a client asks to what a replica is given: text to ids, every limit checked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from cluster.router.inference import InferenceRequest, draw_seed
from cluster.router.journal import JournalEntry
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import ModelNotFoundError, RequestError
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.validation import resolve_bad_words, truncate_prompt, validate

_LONG_PROMPT = 2_000  # characters; about 1 ms of tokenising, the most the event loop should stand


class Tokenizer(Protocol):
    """Text to token ids and back; safe to call from any thread."""

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def output_bytes(self, token_id: int) -> bytes: ...


class Intake:
    """Makes a journal entry of a request, or says what is wrong with it."""

    def __init__(self, *, model: str, tokenizer: Tokenizer | None) -> None:
        self._model = model
        self._tokenizer = tokenizer

    async def tokenize(self, request: InferenceRequest) -> tuple[int, ...]:
        """The prompt's token ids, not yet checked.

        Raises:
            ModelNotFoundError: another model is served here.
            RequestError: the prompt is text that has no tokens.
        """
        if request.model not in ("", self._model):
            raise ModelNotFoundError(
                "model", f"{request.model!r:.200} does not exist; {self._model!r} is served here"
            )
        prompt = request.prompt
        if isinstance(prompt, tuple):
            return prompt
        if self._tokenizer is None:
            raise RequestError("prompt", "this model has no tokenizer; send token ids")
        if len(prompt) <= _LONG_PROMPT:
            return tuple(self._tokenizer.encode(prompt))
        return tuple(await asyncio.to_thread(self._tokenizer.encode, prompt))

    def accept(
        self, request: InferenceRequest, prompt_token_ids: tuple[int, ...], limits: link.Hello
    ) -> JournalEntry:
        """The entry of a request that fits `limits`: the prompt cut, bad words ids, a seed drawn.

        Raises:
            PromptTooLongError: the prompt leaves no room for one output token.
            RequestError: another field cannot be accepted; names it.
        """
        params = request.params
        if self._tokenizer is not None:
            params = resolve_bad_words(params, self._tokenizer.encode)
        prompt_token_ids = tuple(
            truncate_prompt(
                prompt_token_ids,
                request.truncate_prompt_tokens,
                max_model_len=limits.max_model_len,
                max_tokens=params.max_tokens,
                side=request.truncation_side,
            )
        )
        params = validate(
            prompt_token_ids,
            params,
            max_model_len=limits.max_model_len,
            vocab_size=limits.vocab_size,
        )
        return JournalEntry(
            request_id=request.request_id,
            prompt_token_ids=prompt_token_ids,
            params=replace(
                params,
                seed=draw_seed() if params.seed is None else params.seed,
                prompt_logprobs=_prompt_logprobs(request),
            ),
            priority=request.priority,
            cache_salt=request.cache_salt,
        )

    def prompt_text(self, request: InferenceRequest, prompt_token_ids: tuple[int, ...]) -> str:
        """What an answer with an echo begins with, empty without one.

        The text as it was given, unless it was cut; token ids as text, special tokens spelled out.
        """
        if not request.echo or self._tokenizer is None:
            return ""
        if isinstance(request.prompt, str) and request.truncate_prompt_tokens is None:
            return request.prompt
        data = b"".join(map(self._tokenizer.token_bytes, prompt_token_ids))
        return data.decode(errors="replace")


def _prompt_logprobs(request: InferenceRequest) -> int | None:
    """How many likeliest tokens to report for the prompt: an echo has logprobs, too."""
    params: SamplingParams = request.params
    asked = [params.prompt_logprobs, params.logprobs if request.echo else None]
    return max((value for value in asked if value is not None), default=None)
