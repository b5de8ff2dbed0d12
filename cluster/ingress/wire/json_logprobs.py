"""Logprobs as HTTP clients read them, in OpenAI's and in vLLM's shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qwen3_ray.request import TokenLogprobs
from qwen3_ray.text.output_processor import Detokenizer

Json = dict[str, object]
TokenBytes = Callable[[int], bytes]

MIN_LOGPROB = -9999.0
"""Stands for minus infinity (a token that the model cannot make), for which JSON has no number."""


class TokenTexts:
    r"""How tokens are spelled.

    As their text; as `bytes:\xe2\x82` if that is part of a character; as `token_id:5` where ids
    are asked for, or there is no text.
    """

    def __init__(self, token_bytes: TokenBytes | None, *, as_ids: bool = False) -> None:
        self._token_bytes = None if as_ids else token_bytes

    def text(self, token_id: int) -> str:
        """One token's spelling; no two tokens share one."""
        data = b"" if self._token_bytes is None else self._token_bytes(token_id)
        if not data:
            return f"token_id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class LogprobsWriter:
    """OpenAI's `logprobs` of one answer, piece by piece: each piece goes on where the last ended.

    `text_offset` counts the characters that the tokens before have completed, whatever of them is
    held back or cut at a stop string.
    """

    def __init__(self, texts: TokenTexts, num_top: int) -> None:
        """`num_top` likeliest tokens stand beside each token, and the token itself."""
        self._texts = texts
        self._num_top = num_top
        self._offset = 0
        self._detokenizer = Detokenizer()
        self._columns = _columns()

    def add_prompt(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs],
        token_bytes: TokenBytes | None,
        text: str,
    ) -> None:
        """The prompt comes first, and takes the characters of `text`.

        Nothing is known of how likely its first token was.
        """
        self._add(self._texts.text(token_ids[0]), None, None)
        self._advance(token_ids[0], token_bytes)
        self.add(logprobs, token_bytes)
        self._offset = len(text)
        self._detokenizer = Detokenizer()

    def add(self, logprobs: Sequence[TokenLogprobs], token_bytes: TokenBytes | None) -> None:
        """The next tokens; `token_bytes` are what they add to the text."""
        for entry in logprobs:
            self._add(self._texts.text(entry.token_id), _finite(entry.logprob), self._top(entry))
            self._advance(entry.token_id, token_bytes)

    def take(self) -> Json:
        """The piece: what was added since the last one."""
        columns, self._columns = self._columns, _columns()
        return dict(columns)

    def _add(self, token: str, logprob: float | None, top: Json | None) -> None:
        values = (token, logprob, top, self._offset)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def _top(self, entry: TokenLogprobs) -> Json:
        top: Json = {
            self._texts.text(token_id): _finite(logprob)
            for token_id, logprob in entry.top[: self._num_top]
        }
        top.setdefault(self._texts.text(entry.token_id), _finite(entry.logprob))
        return top

    def _advance(self, token_id: int, token_bytes: TokenBytes | None) -> None:
        if token_bytes is not None:
            self._offset += len(self._detokenizer.push(token_bytes(token_id)))


def json_prompt_logprobs(
    logprobs: Sequence[TokenLogprobs], num_top: int, texts: TokenTexts
) -> list[Json | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt, null for the first, by token id."""
    return [None, *(_by_id(entry, num_top, texts) for entry in logprobs)]


def _by_id(entry: TokenLogprobs, num_top: int, texts: TokenTexts) -> Json:
    ranked = [(entry.rank, entry.token_id, entry.logprob)]
    ranked += [
        (rank, token_id, logprob)
        for rank, (token_id, logprob) in enumerate(entry.top[:num_top], start=1)
        if token_id != entry.token_id
    ]
    return {
        str(token_id): {
            "logprob": _finite(logprob),
            "rank": rank,
            "decoded_token": texts.text(token_id),
        }
        for rank, token_id, logprob in ranked
    }


def _columns() -> dict[str, list[object]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else MIN_LOGPROB
