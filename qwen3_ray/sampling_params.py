"""How the tokens of one request are chosen and when they end."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 64
MAX_SEED = 2**63 - 1
MIN_SEED = -(2**63)
MAX_N = 8
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_BIAS = 100.0
MAX_BAD_WORDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling settings, with vLLM's names and meanings. Checked when built.

    Raises:
        RequestError: a value is out of its range; names the field, the limit and the value.
    """

    temperature: float = 1.0
    """0 chooses the most likely token (ties: lowest id); above 0 samples. At most 2."""
    top_p: float = 1.0
    """Sample among the fewest likeliest tokens whose probabilities reach this sum; (0, 1]."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 or -1 for all."""
    min_p: float = 0.0
    """Sample among tokens at least this share as likely as the likeliest one; 0 for all."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the output has; -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken off the logits of the output's tokens, once for each time they occur; -2 to 2."""
    repetition_penalty: float = 1.0
    """Divides positive, and multiplies negative logits of tokens that prompt or output have."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to logits, by token id; clamped to -100 to 100."""
    max_tokens: int | None = 16
    """Most tokens to generate, 0 to score the prompt only; None for as many as fit."""
    min_tokens: int = 0
    """End-of-text and stop tokens are not sampled before this many tokens."""
    n: int = 1
    """Answers to make, each with random numbers of its own."""
    seed: int | None = None
    """64-bit seed; the same request with the same seed gives the same tokens."""
    stop: str | Sequence[str] = ()
    """Strings that end the output; they are not part of it. Stored as a tuple."""
    include_stop_str_in_output: bool = False
    """The stop string that ended an output is part of its text after all."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the output. Stored as a tuple."""
    ignore_eos: bool = False
    """Go on past the model's end-of-text tokens."""
    bad_words: Sequence[str] = ()
    """Texts that must not come up. `bad_words_token_ids` must be resolved from them."""
    bad_words_token_ids: Sequence[Sequence[int]] = ()
    """Token sequences of which the last one is not sampled after the others."""
    allowed_token_ids: Sequence[int] | None = None
    """Nothing but these ids is sampled. Stored as a tuple."""
    logprobs: int | None = None
    """Report the logprob of each token, and of this many likeliest ones; 0 to 20."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    skip_special_tokens: bool = True
    """Special tokens add nothing to the text."""
    structured_outputs: StructuredOutputs | None = None
    """What the text must look like."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        bias = {id_: _clamp(x) for id_, x in self.logit_bias.items()}
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", bias)
        object.__setattr__(self, "bad_words", tuple(self.bad_words))
        object.__setattr__(self, "bad_words_token_ids", tuple(map(tuple, self.bad_words_token_ids)))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        self._check_distribution()
        self._check_length()
        self._check_stop()
        self._check_ids()
        self._check_bad_words()

    def _check_distribution(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 2.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            _check_range(name, getattr(self, name), low, high)
        if self.top_p == 0.0:
            raise RequestError("top_p", "must be greater than 0, got 0")
        if not 0 < self.repetition_penalty <= sys.float_info.max:
            raise RequestError(
                "repetition_penalty",
                f"must be a finite number greater than 0, got {self.repetition_penalty}",
            )
        if self.top_k < -1:
            raise RequestError(
                "top_k", f"must be -1, 0 (both: off) or at least 1, got {self.top_k}"
            )
        if self.seed is not None and not MIN_SEED <= self.seed <= MAX_SEED:
            raise RequestError("seed", f"must be a signed 64-bit integer, got {self.seed}")

    def _check_length(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise RequestError("max_tokens", f"must not be negative, got {self.max_tokens}")
        if self.min_tokens < 0 or (
            self.max_tokens is not None and self.min_tokens > self.max_tokens
        ):
            raise RequestError(
                "min_tokens",
                f"must be from 0 to max_tokens = {self.max_tokens}, got {self.min_tokens}",
            )
        if not 1 <= self.n <= MAX_N:
            raise RequestError("n", f"must be from 1 to {MAX_N}, got {self.n}")
        if self.n > 1 and self.temperature == 0.0:
            raise RequestError(
                "n", f"must be 1 at temperature 0 (all would be equal), got {self.n}"
            )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LOGPROBS:
                raise RequestError(name, f"must be from 0 to {MAX_LOGPROBS}, got {value}")

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError("stop", f"at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise RequestError(
                    "stop",
                    f"each must be a string of 1 to {MAX_STOP_LENGTH} characters, got {text!r:.80}",
                )
            _check_unicode("stop", text)

    def _check_ids(self) -> None:
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            for token_id in getattr(self, name) or ():
                if token_id < 0:
                    raise RequestError(name, f"must not be negative, got {token_id}")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids", "must hold at least one id")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                "logit_bias", f"at most {MAX_LOGIT_BIAS} ids, got {len(self.logit_bias)}"
            )
        for token_id, bias in self.logit_bias.items():
            if not math.isfinite(bias):
                raise RequestError("logit_bias", f"must be finite, got {bias} for id {token_id}")

    def _check_bad_words(self) -> None:
        if len(self.bad_words) > MAX_BAD_WORDS:
            raise RequestError(
                "bad_words", f"at most {MAX_BAD_WORDS} words, got {len(self.bad_words)}"
            )
        for word in self.bad_words:
            if not isinstance(word, str) or not 1 <= len(word) <= MAX_STOP_LENGTH:
                raise RequestError(
                    "bad_words",
                    f"each must be a string of 1 to {MAX_STOP_LENGTH} characters, got {word!r:.80}",
                )
            _check_unicode("bad_words", word)
        # Each word is two sequences: it begins a line, or follows a space.
        if len(self.bad_words_token_ids) > 2 * MAX_BAD_WORDS:
            raise RequestError(
                "bad_words_token_ids",
                f"at most {2 * MAX_BAD_WORDS} sequences, got {len(self.bad_words_token_ids)}",
            )
        if not all(self.bad_words_token_ids):
            raise RequestError("bad_words_token_ids", "each must hold at least one id")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, always a tuple."""
        return tuple(self.stop)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is refused, too
        raise RequestError(name, f"must be a finite number from {low:g} to {high:g}, got {value}")


def _check_unicode(name: str, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(name, f"must be Unicode text, got half a pair: {text!r:.80}")


def _clamp(bias: float) -> float:
    """NaN, of which nothing is less or greater, stays NaN, to be refused."""
    return min(max(bias, -MAX_BIAS), MAX_BIAS)
