"""Requests and answers as gRPC clients write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from cluster.link.sampling_fields import given_params
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, InferenceRequest, ModelInfo
from cluster.router.intake import Tokenizer
from protos.v1 import generate_pb2 as pb
from qwen3_ray.errors import RequestError
from qwen3_ray.model.generation_config import SamplingDefaults
from qwen3_ray.request import TokenLogprobs, Usage
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.validation import TruncationSide


def inference_request(message: pb.GenerateRequest, defaults: SamplingDefaults) -> InferenceRequest:
    """Read a gRPC request; `defaults` are the model's sampling parameters.

    Raises:
        RequestError: names the field.
    """
    prompt: str | tuple[int, ...]
    match message.WhichOneof("input"):
        case "prompt":
            prompt = message.prompt
        case "prompt_token_ids":
            prompt = tuple(message.prompt_token_ids.ids)
        case _:
            raise RequestError("prompt", "is required, or prompt_token_ids instead")
    sampling = message.sampling
    has_limit = sampling.HasField("truncate_prompt_tokens")
    return InferenceRequest(
        model=message.model,
        prompt=prompt,
        params=_sampling_params(sampling, defaults),
        echo=sampling.echo,
        truncate_prompt_tokens=sampling.truncate_prompt_tokens if has_limit else None,
        truncation_side=_truncation_side(message.truncation_side),
        priority=message.priority,
        cache_salt=message.cache_salt,
    )


def _truncation_side(text: str) -> TruncationSide:
    match text:
        case "" | "left":
            return "left"
        case "right":
            return "right"
        case _:
            raise RequestError("truncation_side", f"must be left or right, got {text!r:.80}")


def _sampling_params(sampling: pb.SamplingParams, defaults: SamplingDefaults) -> SamplingParams:
    values: dict[str, Any] = {**defaults, **given_params(sampling)}
    if sampling.HasField("structured_outputs"):
        values["structured_outputs"] = _form(sampling.structured_outputs)
    return SamplingParams(**values)


def _form(message: pb.StructuredOutputs) -> StructuredOutputs:
    name = message.WhichOneof("form")
    given: dict[str, Any] = {}
    if name is not None:
        value = getattr(message, name)
        given[name] = tuple(value.texts) if name == "choice" else value
    return StructuredOutputs(
        **given,
        disable_any_whitespace=message.disable_any_whitespace,
        disable_additional_properties=message.disable_additional_properties,
        whitespace_pattern=message.whitespace_pattern or None,
    )


Message = TypeVar("Message", pb.GenerateResponse, pb.GenerateChunk)


def proto_answer(
    kind: type[Message],
    generation: Generation,
    chunks: Sequence[Chunk],
    tokenizer: Tokenizer | None,
) -> Message:
    """Whole answers, or a piece of one; `usage` stands where the last of all answers ends."""
    return kind(
        id=generation.id,
        model=generation.model,
        created=generation.created,
        choices=[_choice(generation, chunk, tokenizer) for chunk in chunks],
        usage=_usage(generation.usage) if generation.finished else None,
        seed=generation.seed,
        system_fingerprint=generation.fingerprint,
    )


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _choice(generation: Generation, chunk: Chunk, tokenizer: Tokenizer | None) -> pb.Choice:
    choice = pb.Choice(
        index=chunk.index,
        text=chunk.text,
        token_ids=chunk.token_ids,
        finish_reason=chunk.finish_reason,
    )
    if isinstance(chunk.stop_reason, str):
        choice.stop_string = chunk.stop_reason
    elif chunk.stop_reason is not None:
        choice.stop_token_id = chunk.stop_reason
    if chunk.logprobs:
        choice.logprobs.extend(_logprobs(entry, tokenizer) for entry in chunk.logprobs)
    if chunk.is_first:
        choice.prompt_logprobs.extend(
            _logprobs(entry, tokenizer) for entry in generation.prompt_logprobs
        )
    return choice


def _logprobs(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> pb.TokenLogprobs:
    def token_bytes(token_id: int) -> bytes:
        return b"" if tokenizer is None else tokenizer.token_bytes(token_id)

    return pb.TokenLogprobs(
        token_id=entry.token_id,
        token=token_bytes(entry.token_id),
        logprob=entry.logprob,
        rank=entry.rank,
        top=[
            pb.TopLogprob(token_id=token_id, token=token_bytes(token_id), logprob=logprob)
            for token_id, logprob in entry.top
        ],
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
        default_sampling=pb.SamplingParams(**info.default_sampling),
    )
