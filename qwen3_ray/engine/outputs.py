"""What `LLM` answers with, in the shapes of vLLM's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen3_ray.request import TokenLogprobs

TextOf = Callable[[int], str]
"""The text of one token by itself; replacement characters for parts of characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """How likely one token was at one place, in the model's own distribution."""

    logprob: float
    """Natural logarithm; before penalties, masks and temperature."""
    rank: int
    """1 for the likeliest token."""
    decoded_token: str | None
    """The token's text; None when the checkpoint has no tokenizer."""


TokenChoices = dict[int, Logprob]
"""By token id: the token that is there first, then the likeliest ones that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    """Which of the `n` answers."""
    text: str
    """Empty when the checkpoint has no tokenizer."""
    token_ids: list[int]
    """With the stop token, if one ended the answer."""
    finish_reason: str
    """`stop`, `length`, or `error` when the model's logits were not finite."""
    stop_reason: int | str | None
    """The stop string or stop token id that ended the answer; None for end-of-text."""
    logprobs: list[TokenChoices] | None = None
    """One for each of `token_ids`, if asked for."""

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the tokens' logprobs, if asked for."""
        if self.logprobs is None:
            return None
        pairs = zip(self.token_ids, self.logprobs, strict=True)
        return sum(choices[token_id].logprob for token_id, choices in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its answers."""

    prompt: str | None
    """None when the prompt was given as token ids."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    """In order of `index`."""
    prompt_logprobs: list[TokenChoices | None] | None = None
    """One for each prompt token, if asked for; None for the first, which follows nothing."""
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values were in the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPiece:
    """What one engine step added to an answer; the pieces' texts join to the whole."""

    index: int
    """Which of the `n` answers."""
    text: str
    token_ids: list[int]
    finish_reason: str | None
    """As in `CompletionOutput`, on the last piece of an answer alone."""
    stop_reason: int | str | None
    logprobs: list[TokenChoices] | None = None
    """One for each of `token_ids`, if asked for."""
    prompt_logprobs: list[TokenChoices | None] | None = None
    """The next ones of `RequestOutput.prompt_logprobs`, if there are any."""


def token_choices(logprobs: Sequence[TokenLogprobs], text_of: TextOf | None) -> list[TokenChoices]:
    """One dict for each of `logprobs`."""
    return [_choices_at(place, text_of) for place in logprobs]


def _choices_at(place: TokenLogprobs, text_of: TextOf | None) -> TokenChoices:
    ranked = [(place.token_id, place.logprob, place.rank)]
    ranked += [(id_, logprob, rank) for rank, (id_, logprob) in enumerate(place.top, start=1)]
    return {
        token_id: Logprob(logprob=logprob, rank=rank, decoded_token=text_of and text_of(token_id))
        for token_id, logprob, rank in ranked
    }
