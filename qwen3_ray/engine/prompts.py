"""What a user gives, made into requests that an engine can take. Knows no torch."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict, final

from qwen3_ray.engine.answer import Answer, Choice
from qwen3_ray.engine.stats import EngineInfo
from qwen3_ray.errors import RequestError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.output_processor import OutputProcessor
from qwen3_ray.text.tokenizer import Tokenizer
from qwen3_ray.validation import (
    TruncationSide,
    draw_seed,
    resolve_bad_words,
    truncate_prompt,
    validate,
)

MAX_SALT_LENGTH = 1024


@final
class TextPrompt(TypedDict):
    """A prompt that is text."""

    prompt: str
    cache_salt: NotRequired[str]
    """Blocks of the prefix cache are shared only between prompts of equal salts."""


@final
class TokensPrompt(TypedDict):
    """A prompt that is token ids already."""

    prompt_token_ids: Sequence[int]
    output_token_ids: NotRequired[Sequence[int]]
    """The beginning of the output, made before: the answer is what comes after it. These tokens
    count as output, so that the answer is the rest of what one request would have given."""
    cache_salt: NotRequired[str]


Prompt = str | TextPrompt | TokensPrompt


class TokenizationOptions(TypedDict, total=False):
    """How prompts are shortened; see `validation.truncate_prompt`."""

    truncate_prompt_tokens: int | None
    truncation_side: TruncationSide


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A prompt as it was given, in one shape."""

    text: str | None
    token_ids: Sequence[int]
    output_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""


class PromptReader:
    """Reads, checks and completes prompts and parameters. Any number of threads may use one.

    Args:
        info: of the engine that is to answer.
        tokenizer: None for a checkpoint that serves token ids only.
        seed: from which the seeds of requests without one are drawn.
    """

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer | None, *, seed: int) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._seed = seed
        self._num_drawn = itertools.count()

    def read(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        tokenization: TokenizationOptions | None = None,
    ) -> Answer:
        """The answer that a prompt is to get: its requests, with nothing answered yet.

        Raises:
            RequestError: the prompt or a parameter cannot be served.
        """
        if type(priority) is not int:
            raise RequestError("priority", f"must be an integer, got {priority!r:.80}")
        read = self._read(prompt)
        if read.output_token_ids and params.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs", "cannot be told again after output_token_ids")
        token_ids = self._truncate(read.token_ids, params, tokenization or {})
        if self._tokenizer is not None:
            params = resolve_bad_words(params, self._tokenizer.encode)
        params = validate(
            token_ids,
            params,
            max_model_len=self._info.max_model_len,
            vocab_size=self._info.vocab_size,
            output_token_ids=read.output_token_ids,
        )
        self._check_text_side(params)
        if params.seed is None:
            params = replace(params, seed=draw_seed(self._seed, next(self._num_drawn)))
        request = GenerateRequest(
            request_id=uuid.uuid4().hex,
            prompt_token_ids=tuple(token_ids),
            params=params,
            output_token_ids=read.output_token_ids,
            priority=priority,
            cache_salt=read.cache_salt,
        )
        return Answer(
            prompt=read.text, choices=[self._choice(request, index) for index in range(params.n)]
        )

    def _read(self, prompt: Prompt) -> _Read:
        if isinstance(prompt, str):
            return _Read(text=prompt, token_ids=self._encode(prompt))
        if not isinstance(prompt, dict) or ("prompt" in prompt) == ("prompt_token_ids" in prompt):
            raise RequestError(
                "prompt", "must be a string or a dict with the key prompt or prompt_token_ids"
            )
        cache_salt = _checked_salt(prompt.get("cache_salt"))
        if "prompt" in prompt:
            text = prompt["prompt"]
            return _Read(text=text, token_ids=self._encode(text), cache_salt=cache_salt)
        return _Read(
            text=None,
            token_ids=list(prompt["prompt_token_ids"]),
            output_token_ids=tuple(prompt.get("output_token_ids", ())),
            cache_salt=cache_salt,
        )

    def _encode(self, text: str) -> Sequence[int]:
        if not isinstance(text, str):
            raise RequestError("prompt", f"must be text, got {text!r:.80}")
        if self._tokenizer is None:
            raise RequestError(
                "prompt", "is text, but this checkpoint has no tokenizer: give prompt_token_ids"
            )
        return self._tokenizer.encode(text)

    def _truncate(
        self, token_ids: Sequence[int], params: SamplingParams, options: TokenizationOptions
    ) -> Sequence[int]:
        unknown = options.keys() - TokenizationOptions.__annotations__.keys()
        if unknown:
            raise RequestError("tokenization_kwargs", f"must not hold {min(unknown)!r:.80}")
        return truncate_prompt(
            token_ids,
            options.get("truncate_prompt_tokens"),
            max_model_len=self._info.max_model_len,
            max_tokens=params.max_tokens,
            side=options.get("truncation_side", "left"),
        )

    def _check_text_side(self, params: SamplingParams) -> None:
        """Refuse what cannot be done without a tokenizer."""
        if self._tokenizer is not None:
            return
        for name, is_wanted in (
            ("stop", bool(params.stop_strings)),
            ("structured_outputs", params.structured_outputs is not None),
        ):
            if is_wanted:
                raise RequestError(name, "needs a tokenizer, and this checkpoint has none")

    def _choice(self, request: GenerateRequest, index: int) -> Choice:
        """One of the prompt's answers; only the first one scores the prompt."""
        if index > 0:
            request = replace(
                request,
                request_id=f"{request.request_id}-{index}",
                choice=index,
                params=replace(request.params, prompt_logprobs=None),
            )
        tokenizer = self._tokenizer
        if tokenizer is None:
            return Choice(request, None, None)
        processor = OutputProcessor.of(
            request.params, tokenizer, eos_token_ids=self._info.eos_token_ids
        )
        return Choice(
            request,
            processor,
            lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False),
        )


def _checked_salt(salt: object) -> str:
    if salt is None:
        return ""
    if not isinstance(salt, str) or not 1 <= len(salt) <= MAX_SALT_LENGTH:
        raise RequestError(
            "cache_salt", f"must be a string of 1 to {MAX_SALT_LENGTH} characters, got {salt!r:.80}"
        )
    return salt
