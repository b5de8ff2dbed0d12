"""How the tokens of one request are chosen and when they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_ray.errors import RequestError

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 64
MAX_SEED = 2**63 - 1
MIN_SEED = -(2**63)


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
    max_tokens: int | None = 16
    """Most tokens to generate; None for as many as the context holds."""
    seed: int | None = None
    """64-bit seed; the same request with the same seed gives the same tokens."""
    stop: str | Sequence[str] = ()
    """Strings that end the output; they are not part of it. Stored as a tuple."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the output. Stored as a tuple."""
    ignore_eos: bool = False
    """Go on past the model's end-of-text tokens."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p", "must be greater than 0, got 0")
        if self.top_k < -1:
            raise RequestError(
                "top_k", f"must be -1, 0 (both: off) or at least 1, got {self.top_k}"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError("max_tokens", f"must be at least 1, got {self.max_tokens}")
        if self.seed is not None and not MIN_SEED <= self.seed <= MAX_SEED:
            raise RequestError("seed", f"must be a signed 64-bit integer, got {self.seed}")
        self._check_stop()

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError("stop", f"at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise RequestError(
                    "stop",
                    f"each must be a string of 1 to {MAX_STOP_LENGTH} characters, got {text!r:.80}",
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise RequestError("stop", f"must be Unicode text, got half a pair: {text!r:.80}")
        for token_id in self.stop_token_ids:
            if token_id < 0:
                raise RequestError("stop_token_ids", f"must not be negative, got {token_id}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, always a tuple."""
        return tuple(self.stop)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(name, f"must be a finite number from {low:g} to {high:g}, got {value}")
