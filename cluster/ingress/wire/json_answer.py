"""Answers as HTTP clients read them: OpenAI's shapes, with vLLM's additions."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.ingress.wire.completion_body import Completion
from cluster.ingress.wire.json_logprobs import (
    Json,
    LogprobsWriter,
    TokenTexts,
    json_prompt_logprobs,
)
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, ModelInfo
from cluster.router.intake import Tokenizer
from qwen3_ray.request import Usage


class ChoiceWriter:
    """One choice of an answer, piece by piece."""

    def __init__(
        self,
        index: int,
        completion: Completion,
        generation: Generation,
        tokenizer: Tokenizer | None,
    ) -> None:
        """`index` counts through the answers to all of the completion's prompts."""
        self._index = index
        self._completion = completion
        self._generation = generation
        self._tokenizer = tokenizer
        self._texts = TokenTexts(
            None if tokenizer is None else tokenizer.token_bytes,
            as_ids=completion.return_tokens_as_token_ids,
        )
        num_top = generation.request.params.logprobs
        self._logprobs = None if num_top is None else LogprobsWriter(self._texts, num_top)

    def has_news(self, chunk: Chunk) -> bool:
        """Whether the client would learn anything from a piece whose text may be held back."""
        return bool(
            chunk.text
            or chunk.finish_reason
            or self._completion.return_token_ids
            or self._logprobs
            or (chunk.is_first and self._generation.request.params.prompt_logprobs is not None)
        )

    def write(self, chunk: Chunk) -> Json:
        """The choice as the piece `chunk` has it."""
        choice: Json = {
            "index": self._index,
            "text": chunk.text,
            "logprobs": self._write_logprobs(chunk),
            "finish_reason": chunk.finish_reason,
            "stop_reason": chunk.stop_reason,
        }
        if self._completion.return_token_ids:
            choice["token_ids"] = chunk.token_ids
        if chunk.is_first:
            self._add_prompt(choice)
        return choice

    def _add_prompt(self, choice: Json) -> None:
        generation = self._generation
        if self._completion.return_token_ids:
            choice["prompt_token_ids"] = generation.prompt_token_ids
        num_top = generation.request.params.prompt_logprobs
        if num_top is not None:
            choice["prompt_logprobs"] = json_prompt_logprobs(
                generation.prompt_logprobs, num_top, self._texts
            )

    def _write_logprobs(self, chunk: Chunk) -> Json | None:
        if self._logprobs is None:
            return None
        generation, tokenizer = self._generation, self._tokenizer
        if chunk.is_first and generation.request.echo:
            self._logprobs.add_prompt(
                generation.prompt_token_ids,
                generation.prompt_logprobs,
                None if tokenizer is None else tokenizer.token_bytes,
                generation.prompt_text,
            )
        bytes_of = None
        if tokenizer is not None:
            skips = generation.request.params.skip_special_tokens
            bytes_of = tokenizer.output_bytes if skips else tokenizer.token_bytes
        self._logprobs.add(chunk.logprobs, bytes_of)
        return self._logprobs.take()


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


def json_usage(usages: Sequence[Usage]) -> Json:
    """Tokens of all prompts together."""
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "total_tokens": sum(usage.total_tokens for usage in usages),
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.cached_tokens for usage in usages),
        },
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
        "default_sampling": dict(info.default_sampling),
    }
