"""The only map between what clients send and read and what the router takes and gives.

Both skins' requests become `InferenceRequest`; answers become JSON or proto. Errors: `statuses`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cluster.ingress.fields import check_extra_fields
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, InferenceRequest, ModelInfo, draw_seed, new_request_id
from protos.v1 import generate_pb2 as pb
from qwen3_ray.errors import RequestError
from qwen3_ray.request import Usage
from qwen3_ray.sampling_params import SamplingParams

MAX_PROMPTS = 64
"""Prompts in one HTTP request."""

Json = dict[str, object]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _CompletionBody(BaseModel):
    """The fields of `POST /v1/completions` that do something here; null means the default."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    prompt: object
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    return_token_ids: bool | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    def sampling_params(self) -> SamplingParams:
        names = SamplingParams.__dataclass_fields__.keys() & self.model_fields_set
        given = {name: getattr(self, name) for name in names}
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One HTTP request: a stream for each of its prompts, and how to answer."""

    id: str
    requests: tuple[InferenceRequest, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    unknown_fields: tuple[str, ...]


def parse_completion(data: bytes) -> Completion:
    """Read the body of `POST /v1/completions`.

    Raises:
        RequestError: names the field (none if the body is no JSON object).
    """
    try:
        body = _CompletionBody.model_validate(_json_object(data))
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
        requests=_inference_requests(body, completion_id),
        stream=bool(body.stream),
        include_usage=include_usage,
        continuous_usage=bool(include_usage and options and options.continuous_usage_stats),
        return_token_ids=bool(body.return_token_ids),
        unknown_fields=unknown_fields,
    )


def inference_request(message: pb.GenerateRequest) -> InferenceRequest:
    """Read a gRPC request.

    Raises:
        RequestError: names the field.
    """
    sampling = message.sampling
    names = ("temperature", "top_p", "top_k", "max_tokens", "seed", "ignore_eos")
    given = {name: getattr(sampling, name) for name in names if sampling.HasField(name)}
    params = SamplingParams(
        **given, stop=tuple(sampling.stop), stop_token_ids=tuple(sampling.stop_token_ids)
    )
    prompt: str | tuple[int, ...]
    match message.WhichOneof("input"):
        case "prompt":
            prompt = message.prompt
        case "prompt_token_ids":
            prompt = tuple(message.prompt_token_ids.ids)
        case _:
            raise RequestError("prompt", "is required, or prompt_token_ids instead")
    return InferenceRequest(model=message.model, prompt=prompt, params=params)


def _json_object(data: bytes) -> Json:
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
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    raise RequestError(str(first["loc"][0]), f"{first['msg']}{got}")


def _inference_requests(body: _CompletionBody, completion_id: str) -> tuple[InferenceRequest, ...]:
    params = body.sampling_params()
    prompts = _prompts(body.prompt)
    if len(prompts) == 1:
        ids = [completion_id]
    else:  # one seed stands in the answer, so it is one for all prompts
        ids = [f"{completion_id}-{index}" for index in range(len(prompts))]
        params = replace(params, seed=draw_seed() if params.seed is None else params.seed)
    return tuple(
        InferenceRequest(model=body.model or "", prompt=prompt, params=params, request_id=id_)
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


def json_envelope(completion: Completion, generation: Generation) -> Json:
    """What an answer and each of its chunks begin with. `seed` repeats the whole answer."""
    return {
        "id": completion.id,
        "object": "text_completion",
        "created": generation.created,
        "model": generation.model,
        "system_fingerprint": generation.fingerprint,
        "seed": generation.seed,
    }


def json_choice(
    index: int,
    chunk: Chunk,
    *,
    return_token_ids: bool,
    prompt_token_ids: tuple[int, ...] | None = None,
) -> Json:
    """A choice of an answer or of a chunk; `prompt_token_ids` go with the first of a stream."""
    choice: Json = {
        "index": index,
        "text": chunk.text,
        "logprobs": None,
        "finish_reason": chunk.finish_reason,
        "stop_reason": chunk.stop_reason,
    }
    if return_token_ids:
        choice["token_ids"] = chunk.token_ids
        if prompt_token_ids is not None:
            choice["prompt_token_ids"] = prompt_token_ids
    return choice


def json_usage(usages: Sequence[Usage]) -> Json:
    """Tokens of all prompts together."""
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "total_tokens": sum(usage.total_tokens for usage in usages),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def json_model(info: ModelInfo, *, created: int) -> Json:
    """An entry of `/v1/models`; `max_model_len` is null until a replica was reached."""
    return {
        "id": info.model,
        "object": "model",
        "created": created,
        "owned_by": "qwen3-ray",
        "root": info.model,
        "parent": None,
        "max_model_len": info.max_model_len or None,
    }


_Message = TypeVar("_Message", pb.GenerateResponse, pb.GenerateChunk)


def proto_answer(kind: type[_Message], generation: Generation, chunk: Chunk) -> _Message:
    """A whole answer, or one chunk of it; `usage` stands where the answer ends."""
    choice = pb.Choice(
        index=0, text=chunk.text, token_ids=chunk.token_ids, finish_reason=chunk.finish_reason
    )
    if isinstance(chunk.stop_reason, str):
        choice.stop_string = chunk.stop_reason
    elif chunk.stop_reason is not None:
        choice.stop_token_id = chunk.stop_reason
    usage = pb.Usage(
        prompt_tokens=chunk.usage.prompt_tokens,
        completion_tokens=chunk.usage.completion_tokens,
        total_tokens=chunk.usage.total_tokens,
    )
    return kind(
        id=generation.id,
        model=generation.model,
        created=generation.created,
        choices=[choice],
        usage=usage if chunk.finish_reason is not None else None,
        seed=generation.seed,
        system_fingerprint=generation.fingerprint,
    )


def proto_model_info(info: ModelInfo) -> pb.GetModelInfoResponse:
    return pb.GetModelInfoResponse(
        model=info.model,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        tensor_parallel_size=info.tensor_parallel_size,
        numerics=info.numerics,
        numerics_fingerprint=info.numerics_fingerprint,
        version=info.version,
        num_replicas=info.num_replicas,
    )
