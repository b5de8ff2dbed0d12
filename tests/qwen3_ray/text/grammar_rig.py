"""Outputs made under a grammar's masks, and what a grammar says to texts."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models

from qwen3_ray.text.grammar import Grammar, Matcher
from qwen3_ray.text.tokenizer import Tokenizer

CLOSING = (b'"', b"}", b"]", b")", b"@", b".", b"b")
SPECIALS = ("<eos>", "<end>", "<image>")


def make_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Tokens 0, 1... are `texts` (printable ASCII), then come `SPECIALS`."""
    vocab = {text: index for index, text in enumerate(texts)}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=texts[0]))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(SPECIALS))
    return Tokenizer(library, source=Path("made-up"))


def allowed_ids(matcher: Matcher) -> list[int]:
    mask = np.full(matcher.num_mask_words, -1, np.int32)
    matcher.fill_mask(mask)
    return ids_of(mask)


def ids_of(mask: NDArray[np.int32]) -> list[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [int(index) for index in np.flatnonzero(bits)]


def follow(grammar: Grammar, token_ids: Iterable[int], end: int) -> str:
    """Whether a grammar takes an output: `ends` where it may, `open` where not yet, or `refused`.

    Asks both ways, masks and `accept`, which must agree at every token.
    """
    matcher = grammar.matcher()
    for token_id in token_ids:
        is_allowed = token_id in allowed_ids(matcher)
        assert matcher.accept(token_id) == is_allowed
        if not is_allowed:
            return "refused"
    return "ends" if end in allowed_ids(matcher) else "open"


def draw(grammar: Grammar, tokenizer: Tokenizer, end: int, seed: int) -> list[int] | None:
    """Ids of an output drawn under the masks, without the end; None if it became too long.

    Of a few allowed tokens it mostly takes one that closes something: others seldom come to an end.
    """
    pick = random.Random(seed)
    matcher = grammar.matcher()
    token_ids: list[int] = []
    while len(token_ids) < 100:
        allowed = allowed_ids(matcher)
        texts = [token_id for token_id in allowed if tokenizer.output_bytes(token_id)]
        if end in allowed and (not texts or pick.random() < 0.3):
            assert matcher.accept(end)
            return token_ids
        token_ids.append(_pick(texts, tokenizer, pick))
        assert matcher.accept(token_ids[-1])
    return None


def _pick(token_ids: list[int], tokenizer: Tokenizer, pick: random.Random) -> int:
    if pick.random() < 0.4:
        start = pick.choice(CLOSING)
        closing = [id_ for id_ in token_ids if tokenizer.token_bytes(id_).startswith(start)]
        return pick.choice(closing or token_ids)
    return pick.choice(token_ids)
