"""Whoever attaches at any token gets exactly the rest: ids, text, logprobs and end."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.replica.journal import PIECE_TOKENS, StreamJournal
from protos.v1 import link_pb2 as link
from qwen3_ray.text.output_processor import OutputProcessor

END_ID = 0
"""Stands for a stop token; the other ids stand for their own byte."""


def make_journal(stop_strings: Sequence[str] = ()) -> StreamJournal:
    return StreamJournal("r", lambda: OutputProcessor(lambda id_: bytes([id_]), stop_strings))


def in_pieces(token_ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    pieces: list[Sequence[int]] = []
    start = 0
    for size in [*sizes, len(token_ids)]:
        pieces.append(token_ids[start : start + size])
        start += size
    return [piece for piece in pieces if piece]


def entries_of(token_ids: Sequence[int]) -> list[link.TokenLogprobs]:
    return [link.TokenLogprobs(token_id=id_, logprob=-id_ / 8, rank=1) for id_ in token_ids]


def feed(journal: StreamJournal, pieces: list[Sequence[int]], end: link.FinishReason) -> None:
    """Engine deltas, the last one with the end, as far as the stream takes them."""
    for number, piece in enumerate(pieces, start=1):
        if journal.finished:
            return
        reason = end if number == len(pieces) else link.UNFINISHED
        delta = link.EngineDelta(
            request_id="r", token_ids=piece, finish_reason=reason, logprobs=entries_of(piece)
        )
        if reason == link.STOP:
            delta.stop_token_id = END_ID
        journal.push(delta)


# Many two-byte characters, pieces of a stop string, and bytes that are no UTF-8.
letters = st.one_of(
    st.sampled_from(list("abé€".encode())), st.integers(1, 255), st.sampled_from(list(b"ab"))
)


@given(
    body=st.lists(letters, min_size=1, max_size=24),
    sizes=st.lists(st.integers(1, 5), max_size=6),
    stop=st.lists(st.sampled_from(["ab", "ba", "b€", "aab", "é"]), max_size=2),
    end=st.sampled_from([link.LENGTH, link.STOP, link.UNFINISHED, link.ERROR]),
)
def test_every_index_gives_exactly_the_rest(
    body: list[int], sizes: list[int], stop: list[str], end: link.FinishReason
) -> None:
    ids = [*body, END_ID] if end == link.STOP else body
    undisturbed = make_journal(stop)
    feed(undisturbed, in_pieces(ids, sizes), end)
    whole = undisturbed.take()
    # What a reader has after k tokens, were each token a step of its own. (Not after a stop token:
    # here that one is a token like any other, there it adds no text.)
    steps = make_journal(stop)
    text_after = [""]
    for token_id in whole.token_ids:
        steps.push(link.EngineDelta(request_id="r", token_ids=[token_id]))
        text_after.append(text_after[-1] + steps.take().text)
        if steps.finished:
            break
    for index in range(len(whole.token_ids) + 1):
        undisturbed.rewind(index)
        rest = undisturbed.take()
        assert rest.from_index == index
        assert list(rest.token_ids) == list(whole.token_ids)[index:]
        assert list(rest.logprobs) == entries_of(rest.token_ids)
        assert rest.finish_reason == whole.finish_reason
        assert rest.WhichOneof("stop_reason") == whole.WhichOneof("stop_reason")
        if index < len(whole.token_ids) or not whole.HasField("stop_token_id"):
            assert text_after[index] + rest.text == whole.text


@given(
    ids=st.lists(letters, min_size=2, max_size=16),
    sizes=st.lists(st.integers(1, 4), max_size=5),
    data=st.data(),
)
def test_a_stream_goes_on_after_an_attach_in_its_middle(
    ids: list[int], sizes: list[int], data: st.DataObject
) -> None:
    whole = make_journal(["ba"])
    feed(whole, in_pieces(ids, sizes), link.LENGTH)
    expected = whole.take()

    journal = make_journal(["ba"])
    got_ids: list[int] = []
    got_text = ""
    pieces = in_pieces(ids, sizes)
    for number, piece in enumerate(pieces, start=1):
        if journal.finished:
            break
        reason = link.LENGTH if number == len(pieces) else link.UNFINISHED
        journal.push(link.EngineDelta(token_ids=piece, finish_reason=reason))
        if data.draw(st.booleans(), label="router lost before it got this"):
            journal.take()
            journal.rewind(len(got_ids))
        delta = journal.take()
        assert delta.from_index == len(got_ids)
        got_ids += delta.token_ids
        got_text += delta.text
    assert got_ids == list(expected.token_ids)
    assert got_text == expected.text
    assert delta.finish_reason == expected.finish_reason


@given(
    num_tokens=st.integers(0, 1_000),
    num_prompt_logprobs=st.integers(0, 600),
    max_tokens=st.integers(1, 400),
    data=st.data(),
)
@settings(max_examples=20)
def test_a_reader_takes_as_much_at_a_time_as_it_likes(
    num_tokens: int, num_prompt_logprobs: int, max_tokens: int, data: st.DataObject
) -> None:
    ids = [97 + number % 26 for number in range(num_tokens)]
    journal = make_journal(["zz"])
    prompt = entries_of(range(num_prompt_logprobs))
    journal.push(link.EngineDelta(prompt_logprobs=prompt, num_cached_tokens=7))
    feed(journal, [ids] if ids else [], link.LENGTH)
    if data.draw(st.booleans(), label="attached anew"):
        journal.rewind(0)
    received, text = link.StreamDelta(), ""
    while journal.has_news:
        delta = journal.take(max_tokens)
        size = len(delta.token_ids) + len(delta.prompt_logprobs)
        assert size <= max_tokens + max(PIECE_TOKENS, num_tokens)
        if delta.token_ids:  # a reader tells of the prompt with the first piece of the output
            assert len(received.prompt_logprobs) + len(delta.prompt_logprobs) == len(prompt)
        assert delta.from_index == len(received.token_ids)
        if delta.prompt_logprobs:
            assert delta.prompt_logprobs_from == 1 + len(received.prompt_logprobs)
        assert delta.num_cached_tokens == 7
        assert received.finish_reason == link.UNFINISHED
        received.MergeFrom(delta)
        text += delta.text
        assert text == bytes(received.token_ids).decode()
    assert list(received.token_ids) == ids
    assert list(received.logprobs) == entries_of(ids)
    assert list(received.prompt_logprobs) == prompt
    assert received.finish_reason == (link.LENGTH if ids else link.UNFINISHED)


def test_an_attached_reader_gets_a_long_output_in_pieces() -> None:
    journal = make_journal()
    feed(journal, [[97] * 10_000], link.LENGTH)
    journal.rewind(10)
    sizes = []
    while journal.has_news:
        sizes.append(len(journal.take(1_000).token_ids))
    assert sum(sizes) == 9_990
    assert max(sizes) <= 1_000 + PIECE_TOKENS


def test_an_attached_reader_of_many_pieces_gets_the_text_of_one() -> None:
    ids = list("€".encode()) * 500  # most pieces end within a character
    journal = make_journal(["zz"])
    feed(journal, [ids], link.LENGTH)
    whole = journal.take().text
    journal.rewind(0)
    text = ""
    while journal.has_news:
        text += journal.take(1).text
    assert text == whole == "€" * 500


def test_a_reader_that_lacks_nothing_but_the_end_gets_it() -> None:
    journal = make_journal()
    feed(journal, [b"hi"], link.LENGTH)
    journal.take()
    assert not journal.has_news
    journal.rewind(2)
    assert journal.has_news
    assert journal.take().finish_reason == link.LENGTH


def test_a_reader_that_has_some_of_the_prompts_logprobs_gets_the_others() -> None:
    journal = make_journal()
    prompt = entries_of(range(5))
    journal.push(link.EngineDelta(prompt_logprobs=prompt))
    journal.take()
    journal.rewind(0, 3)
    delta = journal.take()
    assert (list(delta.prompt_logprobs), delta.prompt_logprobs_from) == (prompt[3:], 4)
    assert not journal.has_news


def test_ids_after_a_stop_string_are_discarded_with_their_logprobs() -> None:
    journal = make_journal(["lo"])
    journal.push(link.EngineDelta(token_ids=b"hel", logprobs=entries_of(b"hel")))
    assert journal.take().text == "he"
    journal.push(link.EngineDelta(token_ids=b"lo you", logprobs=entries_of(b"lo you")))
    delta = journal.take()
    assert (delta.from_index, bytes(delta.token_ids), delta.text) == (3, b"lo", "l")
    assert list(delta.logprobs) == entries_of(b"lo")
    assert (delta.finish_reason, delta.stop_string) == (link.STOP, "lo")


def test_an_output_whose_form_is_complete_ends_without_a_stop_token() -> None:
    journal = StreamJournal(
        "r", lambda: OutputProcessor(lambda id_: bytes([id_]), stop_token_ids={END_ID})
    )
    journal.push(link.EngineDelta(token_ids=b"{"))
    journal.push(link.EngineDelta(token_ids=b"}", finish_reason=link.STOP))
    whole = journal.take()
    assert (whole.text, whole.finish_reason) == ("{}", link.STOP)
    journal.rewind(1)
    assert journal.take().text == "}"
    journal.rewind(2)
    rest = journal.take()
    assert (rest.text, rest.finish_reason) == ("", link.STOP)


def test_without_a_tokenizer_there_are_ids_and_no_text() -> None:
    journal = StreamJournal("r", lambda: None)
    journal.push(link.EngineDelta(token_ids=[7, 8], finish_reason=link.LENGTH))
    journal.rewind(1)
    assert journal.take() == link.StreamDelta(
        request_id="r", from_index=1, token_ids=[8], finish_reason=link.LENGTH
    )


@pytest.mark.parametrize("reason", [link.ABORT, link.ERROR])
def test_a_failure_keeps_what_came_before_it(reason: link.FinishReason) -> None:
    journal = make_journal()
    journal.push(link.EngineDelta(token_ids=b"hi"))
    journal.push(link.EngineDelta(finish_reason=reason, error="boom"))
    delta = journal.take()
    assert (bytes(delta.token_ids), delta.text) == (b"hi", "hi")
    assert (delta.finish_reason, delta.error) == (reason, "boom")


def test_a_lost_engine_ends_the_stream_as_lost() -> None:
    journal = make_journal()
    journal.lose("rank 1 died")
    assert journal.finished
    assert journal.take().finish_reason == link.LOST
