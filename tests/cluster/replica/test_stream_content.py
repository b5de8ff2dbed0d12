"""What a stream's reader is told: every token, logprob and end once, a frame at a time."""

import pytest

from cluster.link.protocol import FRAME_TOKENS
from protos.v1 import link_pb2 as link
from tests.cluster.replica.rig import OTHER, ROUTER, aborted, accept, delta, make_table, step


def test_one_frame_holds_the_step_of_every_stream_of_a_connection() -> None:
    table = make_table()
    engine_ids = [accept(table, name) for name in "abc"]
    step(table, *(delta(id_, b"x") for id_ in engine_ids))
    assert [entry.request_id for entry in table.take(ROUTER).deltas] == ["a", "b", "c"]
    assert not table.has_news(ROUTER)
    step(table, delta(engine_ids[1], b"yz"))
    assert table.take(ROUTER).deltas == [
        link.StreamDelta(request_id="b", from_index=1, token_ids=b"yz", text="yz")
    ]


def test_steps_that_were_not_taken_become_one_delta() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    for piece in (b"x", b"y", b"z"):
        step(table, delta(engine_id, piece))
    (entry,) = table.take(ROUTER).deltas
    assert (bytes(entry.token_ids), entry.text) == (b"xyz", "xyz")


def test_a_stop_string_ends_the_stream_and_the_engines_work() -> None:
    table = make_table()
    engine_id = accept(table, "a", stop=["b"])
    step(table, delta(engine_id, b"abc"))
    (entry,) = table.take(ROUTER).deltas
    assert (bytes(entry.token_ids), entry.text) == (b"ab", "a")
    assert (entry.finish_reason, entry.stop_string) == (link.STOP, "b")
    assert aborted(table) == [engine_id]
    step(table, delta(engine_id, b"d"), delta(engine_id, b"", link.ABORT))
    assert not table.has_news(ROUTER)
    assert aborted(table) == []


def test_a_stop_string_on_the_engines_last_token_needs_no_abort() -> None:
    table = make_table()
    step(table, delta(accept(table, "a", stop=["b"]), b"ab", link.LENGTH))
    assert table.take(ROUTER).deltas[0].stop_string == "b"
    assert aborted(table) == []


def test_logprobs_of_the_prompt_are_no_first_token() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    entries = [link.TokenLogprobs(token_id=2, logprob=-1.0)]
    step(table, link.EngineDelta(request_id=engine_id, prompt_logprobs=entries))
    assert table.load(0.0).num_waiting_tokens == 2
    (entry,) = table.take(ROUTER).deltas
    assert (list(entry.prompt_logprobs), entry.prompt_logprobs_from) == (entries, 1)
    step(table, delta(engine_id, b"x"))
    assert table.load(0.0).num_waiting_tokens == 0


def test_the_field_that_was_at_fault_is_told() -> None:
    table = make_table()
    failure = link.EngineDelta(
        request_id=accept(table, "a"),
        finish_reason=link.ERROR,
        error="is no grammar",
        error_param="structured_outputs",
    )
    step(table, failure)
    (entry,) = table.take(ROUTER).deltas
    assert (entry.error, entry.error_param) == ("is no grammar", "structured_outputs")
    assert (table.num_unfinished, table.load(0.0).num_waiting) == (0, 0)


def test_more_than_a_frame_holds_goes_into_several_and_none_is_late_or_twice() -> None:
    num_tokens = 2 * FRAME_TOKENS + 100
    table = make_table(max_model_len=num_tokens + 10, max_waiting_requests=9)
    entries = [link.TokenLogprobs(token_id=id_ % 256, logprob=-1.0) for id_ in range(num_tokens)]
    long, short = accept(table, "long"), accept(table, "short")
    step(
        table,
        link.EngineDelta(request_id=long, prompt_logprobs=entries),
        delta(short, b"xyz", link.LENGTH),
    )
    received = {"long": link.StreamDelta(), "short": link.StreamDelta()}
    num_frames = 0
    while table.has_news(ROUTER):
        frame = table.take(ROUTER)
        num_frames += 1
        assert sum(len(entry.prompt_logprobs) for entry in frame.deltas) <= FRAME_TOKENS
        for entry in frame.deltas:
            so_far = received[entry.request_id]
            assert entry.prompt_logprobs_from in {0, 1 + len(so_far.prompt_logprobs)}
            so_far.MergeFrom(entry)
    assert num_frames == 3
    assert list(received["long"].prompt_logprobs) == entries
    assert received["short"].text == "xyz"
    assert received["short"].finish_reason == link.LENGTH


@pytest.mark.parametrize("field", ["from_index", "num_prompt_logprobs"])
def test_a_reader_cannot_know_more_than_there_is(field: str) -> None:
    table = make_table()
    entries = [link.TokenLogprobs(token_id=2)]
    engine_id = accept(table, "a")
    step(table, link.EngineDelta(request_id=engine_id, token_ids=[1], prompt_logprobs=entries))
    table.attach(OTHER, link.Attach(request_id="a", **{field: 2}))
    (reject,) = table.take(OTHER).rejects
    assert (reject.reason, reject.param) == (link.Reject.INVALID, field)
