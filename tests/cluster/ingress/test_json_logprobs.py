"""Logprobs in JSON: tokens spelled without loss, offsets that are places in the text."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ingress.wire.json_logprobs import (
    MIN_LOGPROB,
    LogprobsWriter,
    TokenTexts,
    json_prompt_logprobs,
)
from qwen3_ray.request import TokenLogprobs

EURO = "€".encode()
TOKENS = [b"<special>", b"hello", b" world", EURO[:1], EURO[1:], EURO[:2], EURO[2:], b"\xff", b"!"]


def token_bytes(token_id: int) -> bytes:
    return TOKENS[token_id] if token_id < len(TOKENS) else b""


def output_bytes(token_id: int) -> bytes:
    return b"" if token_id == 0 else token_bytes(token_id)


def entry(token_id: int, rank: int = 1, top: tuple[int, ...] = ()) -> TokenLogprobs:
    """A token of that rank; the likeliest ones are `top`."""
    ranked = tuple((id_, -place / 4) for place, id_ in enumerate(top, start=1))
    return TokenLogprobs(token_id=token_id, logprob=-rank / 4, rank=rank, top=ranked)


@pytest.mark.parametrize(
    ("token_id", "text"),
    [
        (0, "<special>"),
        (2, " world"),
        (3, "bytes:\\xe2"),
        (4, "bytes:\\x82\\xac"),
        (7, "bytes:\\xff"),
        (99, "token_id:99"),
    ],
)
def test_a_token_is_spelled_without_loss(token_id: int, text: str) -> None:
    assert TokenTexts(token_bytes).text(token_id) == text
    assert TokenTexts(token_bytes, as_ids=True).text(token_id) == f"token_id:{token_id}"
    assert TokenTexts(None).text(token_id) == f"token_id:{token_id}"


def test_no_two_tokens_share_a_spelling() -> None:
    texts = TokenTexts(token_bytes)
    assert len({texts.text(token_id) for token_id in range(200)}) == 200


@given(token_ids=st.lists(st.integers(0, len(TOKENS) - 1), max_size=12))
def test_an_offset_is_where_the_token_begins_in_the_text(token_ids: list[int]) -> None:
    writer = LogprobsWriter(TokenTexts(token_bytes), 0)
    writer.add([entry(token_id) for token_id in token_ids], output_bytes)
    written = writer.take()
    assert written["tokens"] == [TokenTexts(token_bytes).text(id_) for id_ in token_ids]
    text = b"".join(map(output_bytes, token_ids)).decode(errors="replace")
    for number, offset in enumerate(written["text_offset"]):
        before = b"".join(map(output_bytes, token_ids[:number]))
        # Characters that are complete; half of one is not yet any.
        assert offset <= len(before.decode(errors="replace"))
        assert text[:offset] == before.decode(errors="replace")[:offset]
        assert offset >= len(before.decode(errors="ignore"))


@given(
    token_ids=st.lists(st.integers(0, len(TOKENS) - 1), max_size=12),
    sizes=st.lists(st.integers(0, 4), max_size=6),
)
def test_pieces_go_on_where_the_last_one_ended(token_ids: list[int], sizes: list[int]) -> None:
    entries = [entry(token_id) for token_id in token_ids]
    whole = LogprobsWriter(TokenTexts(token_bytes), 0)
    whole.add(entries, token_bytes)
    writer = LogprobsWriter(TokenTexts(token_bytes), 0)
    joined: dict[str, list[object]] = {}
    for size in [*sizes, len(entries)]:
        piece, entries = entries[:size], entries[size:]
        writer.add(piece, token_bytes)
        for name, column in writer.take().items():
            joined.setdefault(name, []).extend(column)
    assert joined == whole.take()


def test_the_prompt_comes_first_and_its_first_token_has_no_logprob() -> None:
    writer = LogprobsWriter(TokenTexts(token_bytes), 1)
    writer.add_prompt([1, 2], [entry(2, rank=2, top=(8,))], token_bytes, "hello world")
    writer.add([entry(8, top=(8,))], output_bytes)
    assert writer.take() == {
        "tokens": ["hello", " world", "!"],
        "token_logprobs": [None, -0.5, -0.25],
        "top_logprobs": [None, {"!": -0.25, " world": -0.5}, {"!": -0.25}],
        "text_offset": [0, 5, 11],
    }


def test_the_answer_begins_behind_a_prompt_that_ends_within_a_character() -> None:
    writer = LogprobsWriter(TokenTexts(token_bytes), 0)
    writer.add_prompt([1, 3], [entry(3)], token_bytes, "hello\ufffd")
    writer.add([entry(2), entry(8)], output_bytes)
    assert writer.take()["text_offset"] == [0, 5, 6, 12]


@pytest.mark.parametrize(
    ("num_top", "top"),
    [
        (0, {" world": -0.75}),
        (1, {"hello": -0.25, " world": -0.75}),
        (2, {"hello": -0.25, "!": -0.5, " world": -0.75}),
        (3, {"hello": -0.25, "!": -0.5, " world": -0.75}),
    ],
)
def test_the_token_itself_is_always_among_the_likeliest(
    num_top: int, top: dict[str, float]
) -> None:
    writer = LogprobsWriter(TokenTexts(token_bytes), num_top)
    writer.add([entry(2, rank=3, top=(1, 8, 2))], token_bytes)
    assert writer.take()["top_logprobs"] == [top]


def test_vllms_shape_tells_ranks_by_token_id() -> None:
    written = json_prompt_logprobs(
        [entry(2, rank=3, top=(1, 8)), entry(1, rank=1, top=(1, 8))], 2, TokenTexts(token_bytes)
    )
    world = {"logprob": -0.75, "rank": 3, "decoded_token": " world"}
    hello = {"logprob": -0.25, "rank": 1, "decoded_token": "hello"}
    mark = {"logprob": -0.5, "rank": 2, "decoded_token": "!"}
    assert written == [None, {"2": world, "1": hello, "8": mark}, {"1": hello, "8": mark}]


def test_what_cannot_happen_has_a_number_that_json_knows() -> None:
    never = TokenLogprobs(token_id=1, logprob=-math.inf, rank=9, top=((2, -math.inf),))
    writer = LogprobsWriter(TokenTexts(token_bytes), 1)
    writer.add([never], token_bytes)
    written = [writer.take(), json_prompt_logprobs([never], 1, TokenTexts(token_bytes))]
    assert str(MIN_LOGPROB) in json.dumps(written, allow_nan=False)
