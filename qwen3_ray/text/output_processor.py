"""Token ids of one output to its text, piece by piece, up to a stop string.

Pure, and a function of the ids alone: however they are cut into pieces, the pieces' texts join to
the same text, with the same stop. So a stream can be rebuilt from its ids anywhere.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from qwen3_ray.request import FinishReason
from qwen3_ray.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What one push added to an output."""

    text: str
    """Final: never taken back. May lag behind the ids, and catches up when the output ends."""
    num_kept_tokens: int
    """How many of the pushed ids belong to the output: all, unless a stop string ended it."""
    stop_string: str | None = None
    """The stop string that ended the output, in this push or before it."""


class Detokenizer:
    """Bytes to text; holds back a character until all of its bytes are there."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes; invalid bytes become replacement characters."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """A replacement character for what is held back, if anything is."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Passes text on until one of some strings appears in it, and that string no more.

    Text that may be the beginning of a stop string is held back. When one piece completes several
    of them, the one that begins first wins, then the one given first.

    Args:
        includes_stop: the stop string itself is passed on too.
    """

    def __init__(self, stop_strings: Sequence[str], *, includes_stop: bool = False) -> None:
        self._stop_strings = tuple(stop_strings)
        self._includes_stop = includes_stop
        self._beginnings = frozenset(
            stop[:length] for stop in stop_strings for length in range(1, len(stop))
        )
        self._max_held = max(map(len, self._stop_strings), default=1) - 1
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that can be passed on now, and the stop string if `text` completed one.

        After a stop the matcher is spent.
        """
        # Only what is held back can begin a match that ends in `text`; nothing else is searched.
        num_held = len(self._held)
        whole = self._held + text
        found = [
            (at, stop)
            for stop in self._stop_strings
            if (at := whole.find(stop, max(0, num_held + 1 - len(stop)))) >= 0
        ]
        if found:
            at, stop_string = min(found, key=lambda match: match[0])
            return whole[: at + len(stop_string) * self._includes_stop], stop_string
        return self.skip(text), None

    def skip(self, text: str) -> str:
        """The text that can be passed on now; stop strings that `text` completes do not count."""
        text = self._held + text
        self._held = self._beginning_at_end(text)
        return text[: len(text) - len(self._held)]

    def finish(self) -> str:
        """The text held back: it never became a stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning_at_end(self, text: str) -> str:
        """The longest end of `text` with which a stop string begins."""
        for length in range(min(self._max_held, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return text[-length:]
        return ""


class TokenBytes(Protocol):
    """The bytes of tokens, as `Tokenizer` gives them."""

    def token_bytes(self, token_id: int) -> bytes: ...
    def output_bytes(self, token_id: int) -> bytes: ...


class OutputProcessor:
    """Text of one output. A push costs O(its ids and their text), not O(the output).

    Args:
        token_bytes: the bytes that a token adds to the text, empty for special tokens if they are
            to be left out (`Tokenizer.output_bytes`).
        stop_strings: none of them empty; the first token whose text completes one ends the output.
        min_tokens: the first tokens of the output, as many, do not end it.
        includes_stop: what ended the output, stop string or stop token, is part of the text.
        stop_token_ids: all ids that end the output. None: an output that ends with `STOP` always
            ends with such an id. (Without one it ends when its form is complete.)
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop_strings: Sequence[str] = (),
        *,
        min_tokens: int = 0,
        includes_stop: bool = False,
        stop_token_ids: Collection[int] | None = None,
    ) -> None:
        self._token_bytes = token_bytes
        self._min_tokens = min_tokens
        self._includes_stop = includes_stop
        self._stop_token_ids = stop_token_ids
        self._detokenizer = Detokenizer()
        self._matcher = (
            StopMatcher(stop_strings, includes_stop=includes_stop) if stop_strings else None
        )
        self._num_tokens = 0
        self._stop_string: str | None = None

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        tokenizer: TokenBytes,
        *,
        eos_token_ids: Collection[int] | None = None,
    ) -> Self:
        """What `params` ask for; `eos_token_ids` are the model's, None when they are not known."""
        stop_token_ids: frozenset[int] | None = None
        if eos_token_ids is not None:
            eos = () if params.ignore_eos else eos_token_ids
            stop_token_ids = frozenset((*eos, *params.stop_token_ids))
        skips = params.skip_special_tokens
        return cls(
            tokenizer.output_bytes if skips else tokenizer.token_bytes,
            params.stop_strings,
            min_tokens=params.min_tokens,
            includes_stop=params.include_stop_str_in_output,
            stop_token_ids=stop_token_ids,
        )

    def push(
        self, token_ids: Sequence[int], finish_reason: FinishReason | None = None
    ) -> TextDelta:
        """Take the next ids, and with `finish_reason` the output's end.

        An output that ends with `STOP` has its stop token as last id; that one adds no text (but
        see `includes_stop`). Ids that come after a stop string, before the engine heard of it, are
        discarded.
        """
        if self._stop_string is not None:
            return TextDelta(text="", num_kept_tokens=0, stop_string=self._stop_string)
        visible = token_ids
        if finish_reason is FinishReason.STOP and self._ends_invisibly(token_ids):
            visible = token_ids[:-1]
        delta = self._push(visible, finished=finish_reason is not None)
        if delta.stop_string is not None or visible is token_ids:
            return delta
        return TextDelta(text=delta.text, num_kept_tokens=len(token_ids))

    def _ends_invisibly(self, token_ids: Sequence[int]) -> bool:
        if self._includes_stop or not token_ids:
            return False
        return self._stop_token_ids is None or token_ids[-1] in self._stop_token_ids

    def _push(self, token_ids: Sequence[int], *, finished: bool) -> TextDelta:
        if self._matcher is None:
            text = self._detokenizer.push(b"".join(map(self._token_bytes, token_ids)))
            text += self._detokenizer.finish() if finished else ""
            return TextDelta(text=text, num_kept_tokens=len(token_ids))
        return self._push_and_match(self._matcher, token_ids, finished=finished)

    def _push_and_match(
        self, matcher: StopMatcher, token_ids: Sequence[int], *, finished: bool
    ) -> TextDelta:
        """Token by token, so that the stop does not depend on where the pushes are cut."""
        passed: list[str] = []
        num_kept = 0
        for token_id in token_ids:
            num_kept += 1
            self._num_tokens += 1
            passed.append(self._match(matcher, self._detokenizer.push(self._token_bytes(token_id))))
            if self._stop_string is not None:
                break
        if finished and self._stop_string is None:
            passed.append(self._match(matcher, self._detokenizer.finish()))
            if self._stop_string is None:
                passed.append(matcher.finish())
        return TextDelta(
            text="".join(passed), num_kept_tokens=num_kept, stop_string=self._stop_string
        )

    def _match(self, matcher: StopMatcher, text: str) -> str:
        """What can be passed on of the text of the last token."""
        if self._num_tokens <= self._min_tokens:
            return matcher.skip(text)
        passed, self._stop_string = matcher.push(text)
        return passed
