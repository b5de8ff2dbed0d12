"""`LLM`: a Qwen3 engine in the caller's process, in the shapes of vLLM's class of that name."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, Unpack

from qwen3_ray.config import Device, DType, EngineConfig, KVCacheDType, Numerics
from qwen3_ray.engine.local_engine import Deltas, LocalEngine
from qwen3_ray.engine.outputs import Answer, CompletionOutput, RequestOutput, StreamPiece
from qwen3_ray.engine.progress import OnProgress
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.errors import EngineError, RequestError
from qwen3_ray.model.hub import resolve_model_dir
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.output_processor import OutputProcessor
from qwen3_ray.text.tokenizer import Tokenizer, find_tokenizer
from qwen3_ray.validation import draw_seed, validate

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "StreamPiece"]


class EngineOptions(TypedDict, total=False):
    """Settings of `LLM`; `EngineConfig` says what they mean and holds the defaults."""

    tensor_parallel_size: int
    device: Device
    dtype: DType
    kv_cache_dtype: KVCacheDType
    numerics: Numerics
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory: int | None
    block_size: int | None
    seed: int
    num_threads: int | None
    skip_tokenizer_init: bool


class TokensPrompt(TypedDict):
    """A prompt that is token ids already."""

    prompt_token_ids: Sequence[int]


Prompt = str | TokensPrompt


class LLM:
    """A Qwen3 model, ready to generate. Any number of threads may use it together.

    With `tensor_parallel_size` above 1 the further ranks are child processes, which end with this
    object, or with this process however it ends. Use it as a context manager, or `close()` it.

    Args:
        model: a Hugging Face directory or Hub id; None for the small demo model that is bundled.
        on_progress: told how far loading is, in another thread.
        options: see `EngineConfig`.

    Raises:
        ConfigError: a setting or the checkpoint cannot work; names what and why.
        EngineError: a rank died while it started.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        on_progress: OnProgress = lambda _: None,
        **options: Unpack[EngineOptions],
    ) -> None:
        config = EngineConfig(model_dir=resolve_model_dir(model), **options)
        # Cheap to find out before processes start: what is wrong with the model or its settings.
        model_config = ModelConfig.from_dir(config.model_dir)
        model_config.check_tensor_parallel(config.tensor_parallel_size)
        model_config.resolve_max_model_len(config.max_model_len)
        self._tokenizer = None if config.skip_tokenizer_init else find_tokenizer(config.model_dir)
        self._seed = config.seed
        self._num_drawn = itertools.count()
        self._engine = LocalEngine(config, on_progress)
        self._close: Callable[[], object] = weakref.finalize(self, self._engine.close)

    @property
    def info(self) -> EngineInfo:
        """Facts of the engine: context length, numerics fingerprint, ..."""
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        """Load and totals, as of the last step."""
        return self._engine.stats

    @property
    def rank_pids(self) -> list[int]:
        """Process ids of the child ranks."""
        return self._engine.rank_pids

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, None if it serves token ids only."""
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer prompts, batched together; one output for each, in their order.

        Args:
            prompts: texts or `{"prompt_token_ids": [...]}`, one or a list.
            params: for all prompts, or one for each.

        Raises:
            RequestError: a prompt or its parameters cannot be served; nothing was generated.
            EngineError: the engine died.
        """
        prompt_list: Sequence[Prompt]
        prompt_list = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        answers = [
            self._prepare(prompt, one)
            for prompt, one in zip(prompt_list, _params_for(params, len(prompt_list)), strict=True)
        ]
        with self._submit(answers) as deltas:
            for _ in self._drive(answers, deltas):
                pass
        return [answer.output() for answer in answers]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """Answer one prompt piece by piece; closing the iterator stops the work.

        Raises:
            RequestError: at once, if the prompt or its parameters cannot be served.
            EngineError: while iterating, if the engine died or the logits were not finite.
        """
        answer = self._prepare(prompt, params or SamplingParams())
        return self._stream(answer)

    def _stream(self, answer: Answer) -> Iterator[StreamPiece]:
        with self._submit([answer]) as deltas:
            for piece, delta in self._drive([answer], deltas):
                if delta.finish_reason is FinishReason.ERROR:
                    raise EngineError(delta.error or "the request failed")
                yield piece

    def close(self) -> None:
        """End the engine and its ranks; unfinished calls raise. Again: nothing happens."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> Answer:
        text, token_ids = self._encode(prompt)
        params = validate(
            token_ids,
            params,
            max_model_len=self.info.max_model_len,
            vocab_size=self.info.vocab_size,
        )
        if params.seed is None:
            params = replace(params, seed=draw_seed(self._seed, next(self._num_drawn)))
        if params.stop_strings and self._tokenizer is None:
            raise RequestError("stop", "needs a tokenizer, and this checkpoint has none")
        processor = None
        if self._tokenizer is not None:
            processor = OutputProcessor(self._tokenizer.output_bytes, params.stop_strings)
        request = GenerateRequest(
            request_id=uuid.uuid4().hex, prompt_token_ids=tuple(token_ids), params=params
        )
        return Answer(text, request, processor)

    def _encode(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        if not isinstance(prompt, str):
            if not isinstance(prompt, dict) or "prompt_token_ids" not in prompt:
                raise RequestError(
                    "prompt", "must be a string or a dict with the key prompt_token_ids"
                )
            return None, list(prompt["prompt_token_ids"])
        if self._tokenizer is None:
            raise RequestError(
                "prompt", "is text, but this checkpoint has no tokenizer: give prompt_token_ids"
            )
        return prompt, self._tokenizer.encode(prompt)

    def _submit(self, answers: Sequence[Answer]) -> AbstractContextManager[Deltas]:
        return self._engine.submit([answer.request for answer in answers])

    def _drive(
        self, answers: Sequence[Answer], deltas: Deltas
    ) -> Iterator[tuple[StreamPiece, TokenDelta]]:
        """Bring answers to their ends, giving what each delta added."""
        unfinished = {answer.request.request_id: answer for answer in answers}
        while unfinished:
            delta = deltas.get()
            answer = unfinished.get(delta.request_id)
            if answer is None:  # ended by a stop string that the engine did not know of yet
                continue
            if delta.finish_reason is FinishReason.ERROR:
                self._engine.raise_if_dead()
            if delta.finish_reason is FinishReason.ABORT:
                raise EngineError("the engine was closed")
            piece = answer.push(delta)
            if answer.finish_reason is not None:
                del unfinished[delta.request_id]
                if delta.finish_reason is None:
                    self._engine.abort([delta.request_id])
            yield piece, delta


def _params_for(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise RequestError("params", f"{len(params)} of them for {num_prompts} prompts")
    return params
