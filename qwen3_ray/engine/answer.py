"""How the answers to one prompt grow out of the engine's deltas."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3_ray.engine.outputs import (
    CompletionOutput,
    RequestOutput,
    StreamPiece,
    TextOf,
    TokenChoices,
    token_choices,
)
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.text.output_processor import OutputProcessor


@dataclass(slots=True)
class Choice:
    """One of the answers to a prompt, while its deltas come in.

    It is what comes after `request.output_token_ids`, the beginning that was made before.
    """

    request: GenerateRequest
    processor: OutputProcessor | None
    """None when the checkpoint has no tokenizer."""
    text_of: TextOf | None
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenChoices] = field(default_factory=list)
    prompt_logprobs: list[TokenChoices | None] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def __post_init__(self) -> None:
        if self.processor is not None and self.request.output_token_ids:
            before = self.processor.push(self.request.output_token_ids)
            if before.stop_string is not None:
                self.finish_reason, self.stop_reason = FinishReason.STOP, before.stop_string

    def push(self, delta: TokenDelta) -> StreamPiece:
        """Take a delta in; what it adds. The answer may end here, at a stop string."""
        text, num_kept = "", len(delta.token_ids)
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        if self.processor is not None:
            added = self.processor.push(delta.token_ids, delta.finish_reason)
            text, num_kept = added.text, added.num_kept_tokens
            if added.stop_string is not None:
                self.finish_reason, self.stop_reason = FinishReason.STOP, added.stop_string
        token_ids = list(delta.token_ids[:num_kept])
        logprobs = token_choices(delta.logprobs[:num_kept], self.text_of)
        prompt_logprobs = self._prompt_logprobs(delta)
        self.text.append(text)
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.prompt_logprobs += prompt_logprobs
        self.num_cached_tokens += delta.num_cached_tokens or 0
        return StreamPiece(
            index=self.request.choice,
            text=text,
            token_ids=token_ids,
            finish_reason=None if self.finish_reason is None else str(self.finish_reason),
            stop_reason=self.stop_reason,
            logprobs=None if self.request.params.logprobs is None else logprobs,
            prompt_logprobs=prompt_logprobs or None,
        )

    def _prompt_logprobs(self, delta: TokenDelta) -> list[TokenChoices | None]:
        if self.request.params.prompt_logprobs is None:
            return []
        first: list[TokenChoices | None] = [] if self.prompt_logprobs else [None]
        return first + token_choices(delta.prompt_logprobs, self.text_of)

    def output(self) -> CompletionOutput:
        """The complete answer."""
        return CompletionOutput(
            index=self.request.choice,
            text="".join(self.text),
            token_ids=self.token_ids,
            finish_reason=str(self.finish_reason),
            stop_reason=self.stop_reason,
            logprobs=None if self.request.params.logprobs is None else self.logprobs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A prompt and the answers to it, in order; they share the prompt's side of things."""

    prompt: str | None
    """None when it was given as token ids."""
    choices: list[Choice]

    def output(self) -> RequestOutput:
        """The complete answers."""
        first = self.choices[0]
        wants_prompt = first.request.params.prompt_logprobs is not None
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=list(first.request.prompt_token_ids),
            outputs=[choice.output() for choice in self.choices],
            prompt_logprobs=first.prompt_logprobs if wants_prompt else None,
            num_cached_tokens=first.num_cached_tokens,
        )
