"""Text to token ids and back, over the `tokenizers` library: byte-level BPE, as Qwen3 uses it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders

from qwen3_ray.errors import CheckpointError, RequestError

FILE_NAME = "tokenizer.json"


class Tokenizer:
    """A model's tokenizer; safe to share between threads, knows no chat template.

    The token ids are 0 to `num_tokens - 1` without gaps, which `load` checks. A model often has
    more logits than that; ids from `num_tokens` on mean nothing and must never be sampled.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, source: Path) -> None:
        """Take over `tokenizer`; `source` is the file that errors name.

        Raises:
            CheckpointError: it is not byte-level, or its ids have gaps.
        """
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise CheckpointError(source, "is not a byte-level tokenizer, as Qwen3's is")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._token_bytes = _byte_table(tokenizer, source)
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read `model_dir/tokenizer.json`.

        Raises:
            CheckpointError: the file is missing, damaged, or no tokenizer for Qwen3.
        """
        path = model_dir / FILE_NAME
        if not path.is_file():
            raise CheckpointError(path, "does not exist")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(path, f"is not a tokenizer: {error}") from error
        return cls(tokenizer, source=path)

    @property
    def num_tokens(self) -> int:
        """Tokens in all, added ones included."""
        return len(self._token_bytes)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, none added. Special tokens spelled out in it become their ids.

        Raises:
            RequestError: `text` holds half a surrogate pair, which is no Unicode text.
        """
        if not text.isascii():
            _check_unicode(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, maybe part of a character.

        Empty for an id without a token. As in the library's `decode`, an added token whose
        characters are all letters of the byte alphabet is read as those bytes: the same as its
        UTF-8 for ASCII, and all of Qwen3's added tokens are ASCII.
        """
        if 0 <= token_id < len(self._token_bytes):
            return self._token_bytes[token_id]
        return b""

    def output_bytes(self, token_id: int) -> bytes:
        """What a token adds to an output's text: `token_bytes`, but nothing for special tokens."""
        return b"" if token_id in self._special_ids else self.token_bytes(token_id)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are no UTF-8 become replacement characters."""
        bytes_of = self.output_bytes if skip_special_tokens else self.token_bytes
        return b"".join(map(bytes_of, token_ids)).decode(errors="replace")


def find_tokenizer(model_dir: Path) -> Tokenizer | None:
    """The tokenizer of a model directory, or None when it has none and serves ids only.

    Raises:
        CheckpointError: there is one, but it is damaged or no tokenizer for Qwen3.
    """
    return Tokenizer.load(model_dir) if (model_dir / FILE_NAME).exists() else None


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "prompt", f"is not Unicode text: half a surrogate pair at character {error.start}"
        ) from error


def _byte_table(tokenizer: tokenizers.Tokenizer, source: Path) -> list[bytes]:
    """Bytes of every token, by id."""
    byte_of = _byte_alphabet()
    table: dict[int, bytes] = {}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        try:
            table[token_id] = bytes(map(byte_of.__getitem__, token))
        except KeyError:
            table[token_id] = token.encode()
    missing = next((id_ for id_ in range(len(table)) if id_ not in table), None)
    if missing is not None:
        raise CheckpointError(
            source,
            f"has {len(table)} tokens with ids up to {max(table)}, but none with id {missing}; "
            f"ids must not have gaps",
        )
    return [table[token_id] for token_id in range(len(table))]


def _byte_alphabet() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for (GPT-2's alphabet).

    Printable bytes of Latin-1 stand for themselves; the others, in order, are the code points from
    256 on, so that no token holds a space or a control character.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
