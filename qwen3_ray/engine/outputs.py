"""What `LLM` answers with, and how an answer grows out of the engine's deltas."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.text.output_processor import OutputProcessor


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    text: str
    """Empty when the checkpoint has no tokenizer."""
    token_ids: list[int]
    """With the stop token, if one ended the answer."""
    finish_reason: str
    """`stop`, `length`, or `error` when the model's logits were not finite."""
    stop_reason: int | str | None
    """The stop string or stop token id that ended the answer; None for end-of-text."""
    logprobs: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its answers."""

    prompt: str | None
    """None when the prompt was given as token ids."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPiece:
    """What one engine step added to an answer; the pieces' texts join to the whole."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    """As in `CompletionOutput`, on the last piece alone."""
    stop_reason: int | str | None


@dataclass(slots=True)
class Answer:
    """One request while its deltas come in."""

    prompt: str | None
    request: GenerateRequest
    processor: OutputProcessor | None
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def push(self, delta: TokenDelta) -> StreamPiece:
        """Take a delta in; what it adds. The answer may end here, at a stop string."""
        text, token_ids = "", list(delta.token_ids)
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        if self.processor is not None:
            added = self.processor.push(token_ids, delta.finish_reason)
            text, token_ids = added.text, token_ids[: added.num_kept_tokens]
            if added.stop_string is not None:
                self.finish_reason, self.stop_reason = FinishReason.STOP, added.stop_string
        self.text.append(text)
        self.token_ids += token_ids
        return StreamPiece(
            text=text,
            token_ids=token_ids,
            finish_reason=None if self.finish_reason is None else str(self.finish_reason),
            stop_reason=self.stop_reason,
        )

    def output(self) -> RequestOutput:
        """The complete answer."""
        completion = CompletionOutput(
            index=0,
            text="".join(self.text),
            token_ids=self.token_ids,
            finish_reason=str(self.finish_reason),
            stop_reason=self.stop_reason,
        )
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=list(self.request.prompt_token_ids),
            outputs=[completion],
        )
