"""A model's tokens in the terms of the grammar library, and of masks over its logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.errors import RequestError
from qwen3_ray.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class GrammarVocabulary:
    """The texts of a model's tokens, and the bits that stand for them.

    To the library, special tokens mean nothing, and one further token, the end, stands for all
    ids that end an output.

    Args:
        tokenizer: the model's.
        eos_token_ids: ids that end an output.
        vocab_size: ids that a mask has bits for.

    Raises:
        RequestError: the library is not installed.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: Collection[int], vocab_size: int
    ) -> None:
        num_tokens = min(tokenizer.num_tokens, vocab_size)
        self.eos_token_ids = frozenset(id_ for id_ in eos_token_ids if 0 <= id_ < num_tokens)
        self._texts = [
            b"" if id_ in self.eos_token_ids else tokenizer.output_bytes(id_)
            for id_ in range(num_tokens)
        ]
        self.tokenizer = _library_tokenizer([*self._texts, b""])
        self._end = num_tokens
        self.num_words = num_tokens // 32 + 1
        self.num_mask_words = (vocab_size + 31) // 32
        self._eos_mask = np.zeros(self.num_mask_words, np.uint32)
        for id_ in self.eos_token_ids:
            self._eos_mask[id_ // 32] |= np.uint32(1 << id_ % 32)

    def has_text(self, token_id: int) -> bool:
        """Whether an id adds to the text, as special tokens and unknown ids do not."""
        return 0 <= token_id < len(self._texts) and bool(self._texts[token_id])

    def compute(self, state: LLMatcher, words: NDArray[np.int32]) -> int:
        """Fill [num_words] with the bits of the tokens that may come next, and of the end."""
        state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return words.size

    def is_end_only(self, words: NDArray[np.int32]) -> bool:
        """Whether of all bits only the end's is set."""
        return self._may_end(words) and np.count_nonzero(words) == 1 and _is_power(int(words[-1]))

    def write_mask(self, words: NDArray[np.int32], mask: NDArray[np.int32]) -> None:
        """Turn the library's bits into a mask's."""
        size = min(words.size, mask.size)
        mask[:size] = words[:size]
        mask[size:] = 0
        bits = mask.view(np.uint32)
        if self._end // 32 < mask.size:
            bits[self._end // 32] &= np.uint32(~(1 << self._end % 32) & 0xFFFFFFFF)
        if self._may_end(words):
            bits |= self._eos_mask

    def _may_end(self, words: NDArray[np.int32]) -> bool:
        return bool(int(words[-1]) >> self._end % 32 & 1)


def _is_power(word: int) -> bool:
    word &= 0xFFFFFFFF
    return word & (word - 1) == 0


class _Tokens:
    """What the library asks of a tokenizer; it never encodes, since nothing is forced."""

    def __init__(self, texts: list[bytes]) -> None:
        self.tokens = texts
        self.eos_token_id = len(texts) - 1
        self.bos_token_id = None
        self.special_token_ids: list[int] = []

    def __call__(self, _text: str) -> list[int]:
        return []


def _library_tokenizer(texts: list[bytes]) -> LLTokenizer:
    """The library's own table of the tokens; the last one is the end."""
    try:
        import llguidance  # noqa: PLC0415
    except ImportError as error:
        raise RequestError(
            "structured_outputs", "needs the package llguidance, which is not installed here"
        ) from error
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(texts)))
