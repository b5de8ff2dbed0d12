"""The body of `POST /v1/completions`, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cluster.ingress.fields import check_extra_fields
from cluster.ingress.wire.output_form import (
    FORM_FIELDS,
    ResponseFormatBody,
    StructuredOutputsBody,
    output_form,
)
from cluster.router.inference import InferenceRequest, draw_seed, new_request_id
from qwen3_ray.errors import RequestError
from qwen3_ray.model.generation_config import SamplingDefaults
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.validation import TruncationSide

MAX_PROMPTS = 64
"""Prompts in one HTTP request."""


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CompletionBody(BaseModel):
    """The fields of `POST /v1/completions` that do something here; null means the default."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    prompt: object
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputsBody | None = None
    response_format: ResponseFormatBody | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    echo: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: TruncationSide | None = None
    priority: int | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the fields that are not null."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def sampling_params(self, defaults: SamplingDefaults) -> SamplingParams:
        """The parameters, with `defaults` for what is left open.

        Raises:
            RequestError: a value is out of its range.
        """
        names = SamplingParams.__dataclass_fields__.keys() & CompletionBody.model_fields.keys()
        values = {**defaults, **self.given(*names)}
        values["structured_outputs"] = output_form(self.given(*FORM_FIELDS))
        values["logit_bias"] = _logit_bias(self.logit_bias or {})
        if self.no_stop_trim:
            values["include_stop_str_in_output"] = True
        return SamplingParams(**values)

    def salt(self) -> str:
        """`cache_salt`, or SGLang's name for it.

        Raises:
            RequestError: it is empty.
        """
        given = self.given("cache_salt", "extra_key")
        if "" in given.values():
            raise RequestError(next(name for name in given if not given[name]), "must not be empty")
        return next(iter(given.values()), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One HTTP request: its prompts, `n` answers to each, and how to tell them."""

    id: str
    requests: tuple[InferenceRequest, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    return_tokens_as_token_ids: bool
    unknown_fields: tuple[str, ...]


def parse_completion(data: bytes, defaults: SamplingDefaults) -> Completion:
    """Read the body of `POST /v1/completions`; `defaults` are the model's sampling parameters.

    Raises:
        RequestError: names the field (none if the body is no JSON object).
    """
    try:
        body = CompletionBody.model_validate(_json_object(data))
    except ValidationError as error:
        _refuse(error)
    unknown_fields = check_extra_fields(body.model_extra or {})
    options = body.stream_options
    if options is not None and not body.stream:
        raise RequestError("stream_options", "is only allowed with stream = true")
    include_usage = bool(options and options.include_usage)
    completion_id = new_request_id()
    return Completion(
        id=completion_id,
        requests=_inference_requests(body, completion_id, defaults),
        stream=bool(body.stream),
        include_usage=include_usage,
        continuous_usage=bool(include_usage and options and options.continuous_usage_stats),
        return_token_ids=bool(body.return_token_ids),
        return_tokens_as_token_ids=bool(body.return_tokens_as_token_ids),
        unknown_fields=unknown_fields,
    )


def _json_object(data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(None, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(None, "the body must be a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False)[0]
    param, *path = map(str, first["loc"])
    where = f"{'.'.join(path)}: " if path else ""
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    raise RequestError(param, f"{where:.80}{first['msg']}{got}")


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    """Keys of a JSON object are strings; here they are token ids."""
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.removeprefix("-").isdigit() and len(key) <= 20):
            raise RequestError("logit_bias", f"each key must be a token id, got {key!r:.80}")
        bias[int(key)] = value
    return bias


def _inference_requests(
    body: CompletionBody, completion_id: str, defaults: SamplingDefaults
) -> tuple[InferenceRequest, ...]:
    params = body.sampling_params(defaults)
    prompts = _prompts(body.prompt)
    if len(prompts) == 1:
        ids = [completion_id]
    else:  # one seed stands in the answer, so it is one for all prompts
        ids = [f"{completion_id}-{index}" for index in range(len(prompts))]
        params = replace(params, seed=draw_seed() if params.seed is None else params.seed)
    given = body.given("model", "echo", "truncate_prompt_tokens", "truncation_side", "priority")
    return tuple(
        InferenceRequest(
            prompt=prompt, params=params, cache_salt=body.salt(), request_id=id_, **given
        )
        for id_, prompt in zip(ids, prompts, strict=True)
    )


def _prompts(value: object) -> list[str | tuple[int, ...]]:
    """`prompt` is one text, one list of token ids, or a list of either."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise RequestError("prompt", f"{_PROMPT_SHAPES}, got {value!r:.80}")
    if all(type(item) is int for item in value):
        return [tuple(value)]
    if len(value) > MAX_PROMPTS:
        raise RequestError("prompt", f"at most {MAX_PROMPTS} prompts, got {len(value)}")
    return [_prompt(item) for item in value]


def _prompt(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    raise RequestError("prompt", f"{_PROMPT_SHAPES}, got {value!r:.80} in the list")


_PROMPT_SHAPES = "must be a string, a list of token ids, or a list of strings or of such lists"
