"""`LLM`: a Qwen3 engine in the caller's process, in the shapes of vLLM's class of that name."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

from qwen3_ray.config import EngineConfig
from qwen3_ray.engine.answer import Answer, Choice
from qwen3_ray.engine.engine_options import EngineOptions
from qwen3_ray.engine.local_engine import LocalEngine
from qwen3_ray.engine.outputs import CompletionOutput, Logprob, RequestOutput, StreamPiece
from qwen3_ray.engine.progress import OnProgress
from qwen3_ray.engine.prompts import (
    Prompt,
    PromptReader,
    TextPrompt,
    TokenizationOptions,
    TokensPrompt,
)
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.errors import EngineError, RequestError
from qwen3_ray.model.generation_config import default_sampling
from qwen3_ray.model.hub import resolve_model_dir
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.request import FinishReason, TokenDelta
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.chat_messages import ChatMessage
from qwen3_ray.text.chat_template import ChatOptions, ChatTemplate, find_chat_template
from qwen3_ray.text.tokenizer import Tokenizer, find_tokenizer

__all__ = [
    "LLM",
    "ChatOptions",
    "CompletionOutput",
    "Logprob",
    "Prompt",
    "RequestOutput",
    "StreamPiece",
    "TextPrompt",
    "TokenizationOptions",
    "TokensPrompt",
]

Params = SamplingParams | Sequence[SamplingParams] | None
T = TypeVar("T")


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
        self._default_params = SamplingParams()
        if config.generation_config == "auto":
            self._default_params = SamplingParams(**default_sampling(config.model_dir))
        self._tokenizer: Tokenizer | None = None
        self._chat_template: ChatTemplate | None = None
        if not config.skip_tokenizer_init:
            self._tokenizer = find_tokenizer(config.model_dir)
            self._chat_template = find_chat_template(config.model_dir)
        self._engine = LocalEngine(config, on_progress)
        self._close: Callable[[], object] = weakref.finalize(self, self._engine.close)
        self._reader = PromptReader(self.info, self._tokenizer, seed=config.seed)

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

    def get_default_sampling_params(self) -> SamplingParams:
        """What requests without parameters get: the checkpoint's generation_config.json."""
        return self._default_params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        priority: int | Sequence[int] = 0,
        tokenization_kwargs: TokenizationOptions | None = None,
    ) -> list[RequestOutput]:
        """Answer prompts, batched together; one output for each, in their order.

        Args:
            prompts: texts, `{"prompt": ...}` or `{"prompt_token_ids": [...]}`, one or a list.
                Dicts may hold a `cache_salt`, and token ids come with `output_token_ids` to go on
                with an output that was begun elsewhere (ours, not vLLM's).
            params: for all prompts, or one for each; None for the checkpoint's own defaults.
            priority: for all prompts, or one for each; lower comes first.
            tokenization_kwargs: to shorten long prompts.

        Raises:
            RequestError: a prompt or its parameters cannot be served.
            EngineError: the engine died.
        """
        prompt_list: Sequence[Prompt]
        prompt_list = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        num = len(prompt_list)
        answers = [
            self._reader.read(prompt, one, priority=rank, tokenization=tokenization_kwargs)
            for prompt, one, rank in zip(
                prompt_list,
                _for_each("params", self._default_params if params is None else params, num),
                _for_each("priority", priority, num),
                strict=True,
            )
        ]
        with closing(self._drive(answers)) as pieces:
            for _ in pieces:
                pass
        return [answer.output() for answer in answers]

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        params: Params = None,
        *,
        priority: int | Sequence[int] = 0,
        tokenization_kwargs: TokenizationOptions | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Answer one chat or several, batched together; see `generate` and `ChatOptions`.

        Raises:
            RequestError: a chat or its parameters cannot be served, or there is no template.
            CheckpointError: the checkpoint's chat template is damaged.
            EngineError: the engine died.
        """
        is_one = not messages or isinstance(messages, Mapping) or isinstance(messages[0], Mapping)
        chats = [messages] if is_one else messages
        return self.generate(
            [self.chat_prompt(chat, **options) for chat in chats],  # type: ignore[arg-type]
            params,
            priority=priority,
            tokenization_kwargs=tokenization_kwargs,
        )

    def chat_prompt(self, messages: Sequence[ChatMessage], **options: Unpack[ChatOptions]) -> str:
        """The prompt that `chat` gives the model for one chat, for example to `stream` it.

        Raises:
            RequestError: the chat cannot be rendered, or there is no template.
            CheckpointError: the checkpoint's chat template is damaged.
        """
        if self._chat_template is None:
            raise RequestError("messages", "this checkpoint has no chat template: give a prompt")
        return self._chat_template.render(messages, **options)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        tokenization_kwargs: TokenizationOptions | None = None,
    ) -> Iterator[StreamPiece]:
        """Answer one prompt piece by piece; closing the iterator stops the work.

        Raises:
            RequestError: at once, if the prompt or its parameters cannot be served; while
                iterating, if only the engine could tell.
            EngineError: while iterating, if the engine died or the logits were not finite.
        """
        answer = self._reader.read(
            prompt,
            params or self._default_params,
            priority=priority,
            tokenization=tokenization_kwargs,
        )
        return self._stream(answer)

    def _stream(self, answer: Answer) -> Iterator[StreamPiece]:
        with closing(self._drive([answer])) as pieces:
            for piece, delta in pieces:
                if delta.finish_reason is FinishReason.ERROR:
                    raise EngineError(delta.error or "the request failed")
                yield piece

    def reset_prefix_cache(self) -> None:
        """Let no later request find keys and values that were computed before now."""
        self._engine.reset_prefix_cache()

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

    def _drive(self, answers: Sequence[Answer]) -> Generator[tuple[StreamPiece, TokenDelta]]:
        """Bring answers to their ends, giving what each delta added."""
        unfinished = {
            choice.request.request_id: choice
            for answer in answers
            for choice in answer.choices
            if choice.finish_reason is None  # else what came with the request completes it
        }
        with self._engine.submit([choice.request for choice in unfinished.values()]) as deltas:
            while unfinished:
                delta = deltas.get()
                choice = unfinished.get(delta.request_id)
                if choice is None:  # ended by a stop string that the engine did not know of yet
                    continue
                yield self._take(choice, delta), delta
                if choice.finish_reason is not None:
                    del unfinished[delta.request_id]

    def _take(self, choice: Choice, delta: TokenDelta) -> StreamPiece:
        if delta.error_param is not None:
            raise RequestError(delta.error_param, delta.error or "cannot be served")
        if delta.finish_reason is FinishReason.ERROR:
            self._engine.raise_if_dead()
        if delta.finish_reason is FinishReason.ABORT:
            raise EngineError("the engine was closed")
        piece = choice.push(delta)
        if choice.finish_reason is not None and delta.finish_reason is None:
            self._engine.abort([delta.request_id])
        return piece


def _for_each(name: str, values: T | Sequence[T], num_prompts: int) -> Sequence[T]:
    """One of `values` for each prompt; a single value is for all."""
    if not isinstance(values, Sequence):
        return [values] * num_prompts
    if len(values) != num_prompts:
        raise RequestError(name, f"{len(values)} of them for {num_prompts} prompts")
    return values
