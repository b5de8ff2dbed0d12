"""The stream table: who is accepted, who reads what, and when a stream is given up."""

import pytest

from protos.v1 import link_pb2 as link
from tests.cluster.replica.rig import (
    GRACE_S,
    OTHER,
    ROUTER,
    aborted,
    accept,
    delta,
    make_submit,
    make_table,
    rejects,
    step,
)


def test_the_engine_gets_each_submit_once_under_a_name_used_once() -> None:
    table = make_table()
    first = accept(table, "a")
    assert table.take_command() is None
    table.abort(ROUTER, "a")
    assert aborted(table) == [first]
    second = accept(table, "a")
    assert second != first
    step(table, delta(first, b"late"))
    assert not table.has_news(ROUTER)


@pytest.mark.parametrize(
    ("submit", "param"),
    [
        (make_submit("r", prompt=()), "prompt"),
        (make_submit("r", prompt=(1, 256)), "prompt_token_ids"),
        (make_submit("r", prompt=(-1,)), "prompt_token_ids"),
        (make_submit("r", prompt=[1] * 100), "prompt"),
        (make_submit("r", prompt=[1] * 95), "max_tokens"),
        (link.Submit(request_id="r", prompt_token_ids=[1]), "top_p"),
        (make_submit("r", stop=[""]), "stop"),
        (make_submit(""), "request_id"),
    ],
    ids=["empty", "id too high", "negative id", "too long", "no room", "top_p", "stop", "no id"],
)
def test_a_request_that_cannot_be_served_is_invalid(submit: link.Submit, param: str) -> None:
    table = make_table()
    table.submit(ROUTER, submit)
    (reject,) = table.take(ROUTER).rejects
    assert (reject.reason, reject.param) == (link.Reject.INVALID, param)
    assert reject.message
    assert table.take_command() is None
    assert table.num_unfinished == 0


def test_an_id_in_use_is_refused() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    table.submit(ROUTER, make_submit("a"))
    assert rejects(table) == [("a", link.Reject.INVALID)]
    step(table, delta(engine_id, b"x", link.LENGTH))
    table.submit(OTHER, make_submit("a"))
    assert rejects(table, OTHER) == [("a", link.Reject.INVALID)]


def test_beyond_either_bound_a_request_is_overloaded_until_others_start() -> None:
    table = make_table(max_waiting_tokens=5, max_waiting_requests=3)
    first, _ = accept(table, "a"), accept(table, "b")
    table.submit(ROUTER, make_submit("c"))
    (reject,) = table.take(ROUTER).rejects
    assert reject.reason == link.Reject.OVERLOADED
    assert reject.retry_after_s > 0
    assert table.load(0.0).num_waiting_tokens == 4
    step(table, delta(first, b"x"))
    assert table.load(0.0).num_waiting_tokens == 2
    accept(table, "c")

    table = make_table(max_waiting_requests=2)
    accept(table, "a"), accept(table, "b")
    table.submit(ROUTER, make_submit("c"))
    assert rejects(table) == [("c", link.Reject.OVERLOADED)]
    table.abort(ROUTER, "a")
    table.take_command()
    accept(table, "c")


def test_a_prompt_above_the_bound_is_served_when_nothing_waits() -> None:
    table = make_table(max_waiting_tokens=1)
    accept(table, "a")


def test_an_orphan_runs_on_and_its_grace_ends_in_an_abort() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    table.disconnect(ROUTER, now=100.0)
    step(table, delta(engine_id, b"x"), now=101.0)
    table.expire(100.0 + GRACE_S - 0.1)
    assert table.num_unfinished == 1
    table.expire(100.0 + GRACE_S)
    assert aborted(table) == [engine_id]
    assert table.num_unfinished == 0
    table.attach(OTHER, link.Attach(request_id="a"))
    assert rejects(table, OTHER) == [("a", link.Reject.UNKNOWN_STREAM)]


def test_attaching_ends_the_grace_and_gives_the_rest() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    step(table, delta(engine_id, b"xyz"))
    table.take(ROUTER)
    table.disconnect(ROUTER, now=100.0)
    step(table, delta(engine_id, b"w"), now=101.0)
    table.attach(OTHER, link.Attach(request_id="a", from_index=2))
    assert table.is_busy(OTHER)
    (entry,) = table.take(OTHER).deltas
    assert (entry.from_index, bytes(entry.token_ids), entry.text) == (2, b"zw", "zw")
    table.expire(1_000.0)
    step(table, delta(engine_id, b"!", link.LENGTH), now=1_000.0)
    assert table.take(OTHER).deltas[0].text == "!"
    assert not table.is_busy(OTHER)


def test_what_finished_is_kept_for_its_grace_read_or_not() -> None:
    table = make_table()
    step(table, delta(accept(table, "a"), b"xy", link.LENGTH), now=50.0)
    table.take(ROUTER)
    table.disconnect(ROUTER, now=52.0)
    table.expire(52.0 + GRACE_S - 0.1)
    table.attach(OTHER, link.Attach(request_id="a", from_index=1))
    (entry,) = table.take(OTHER).deltas
    assert (bytes(entry.token_ids), entry.finish_reason) == (b"y", link.LENGTH)
    table.expire(52.0 + GRACE_S)
    table.attach(OTHER, link.Attach(request_id="a", from_index=1))
    assert rejects(table, OTHER) == [("a", link.Reject.UNKNOWN_STREAM)]
    assert aborted(table) == []


def test_a_finished_stream_outlives_its_reader_and_its_orphanage() -> None:
    """The end may be lost on its way, so its grace counts from the end."""
    table = make_table()
    read = accept(table, "read")
    step(table, delta(read, b"x", link.LENGTH), now=0.0)
    table.take(ROUTER)
    orphan = accept(table, "orphan")
    table.disconnect(ROUTER, now=0.0)
    step(table, delta(orphan, b"y", link.LENGTH), now=GRACE_S - 1.0)
    table.expire(GRACE_S - 0.1)
    table.attach(OTHER, link.Attach(request_id="read"))
    assert table.take(OTHER).deltas[0].text == "x"
    table.expire(2 * GRACE_S - 1.1)
    table.attach(OTHER, link.Attach(request_id="orphan"))
    assert table.take(OTHER).deltas[0].text == "y"


def test_the_end_waits_for_a_slow_reader_that_is_still_there() -> None:
    table = make_table()
    step(table, delta(accept(table, "a"), b"x", link.LENGTH), now=0.0)
    table.expire(10 * GRACE_S)
    assert table.take(ROUTER).deltas[0].finish_reason == link.LENGTH
    table.expire(10 * GRACE_S)
    table.attach(ROUTER, link.Attach(request_id="a"))
    assert rejects(table) == [("a", link.Reject.UNKNOWN_STREAM)]


@pytest.mark.parametrize("from_index", [-1, 3])
def test_an_index_that_the_stream_has_not_reached_is_invalid(from_index: int) -> None:
    table = make_table()
    step(table, delta(accept(table, "a"), b"xy"))
    table.attach(OTHER, link.Attach(request_id="a", from_index=from_index))
    assert rejects(table, OTHER) == [("a", link.Reject.INVALID)]


def test_the_router_that_lost_a_stream_is_told_and_cannot_abort_it() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    table.attach(OTHER, link.Attach(request_id="a"))
    assert rejects(table, ROUTER) == [("a", link.Reject.TAKEN_OVER)]
    assert not table.is_busy(ROUTER)
    table.abort(ROUTER, "a")
    table.disconnect(ROUTER, now=0.0)
    table.expire(10 * GRACE_S)
    step(table, delta(engine_id, b"x"))
    assert table.take(OTHER).deltas[0].text == "x"
    table.abort(OTHER, "a")
    assert aborted(table) == [engine_id]


def test_an_orphan_can_be_aborted_without_attaching() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    table.disconnect(ROUTER, now=0.0)
    table.abort(OTHER, "a")
    assert aborted(table) == [engine_id]


def test_the_answers_to_one_prompt_wait_for_its_tokens_once() -> None:
    table = make_table(max_waiting_tokens=5)
    for choice in range(3):
        submit = make_submit(f"a-{choice}", prompt=(1, 2, 3, 4))
        submit.choice = choice
        table.submit(ROUTER, submit)
    load = table.load(0.0)
    assert (load.num_waiting, load.num_waiting_tokens) == (3, 4)
    table.submit(ROUTER, make_submit("b"))
    assert rejects(table) == [("b", link.Reject.OVERLOADED)]


def test_a_draining_table_refuses_and_finishes() -> None:
    table = make_table()
    engine_id = accept(table, "a")
    table.refuse("going away")
    table.submit(ROUTER, make_submit("b"))
    assert rejects(table) == [("b", link.Reject.DRAINING)]
    step(table, delta(engine_id, b"x", link.LENGTH))
    assert table.take(ROUTER).deltas[0].finish_reason == link.LENGTH


def test_a_lost_engine_ends_what_ran_and_leaves_what_had_finished() -> None:
    table = make_table()
    done, running = accept(table, "done"), accept(table, "running")
    step(table, delta(done, b"x", link.LENGTH), delta(running, b"y"))
    table.lose("rank 1 died", now=0.0)
    ends = {entry.request_id: entry for entry in table.take(ROUTER).deltas}
    assert ends["done"].finish_reason == link.LENGTH
    assert (ends["running"].finish_reason, ends["running"].error) == (link.LOST, "rank 1 died")
    assert ends["running"].text == "y"
    assert table.num_unfinished == 0
    table.submit(ROUTER, make_submit("b"))
    assert rejects(table) == [("b", link.Reject.DRAINING)]


def test_nothing_is_left_of_a_thousand_streams() -> None:
    table = make_table(max_waiting_requests=1_000, max_waiting_tokens=10_000)
    for number in range(1_000):
        engine_id = accept(table, str(number), stop=["b"])
        ends = [delta(engine_id, b"ab"), delta(engine_id, b"a", link.LENGTH)]
        if number % 3:
            step(table, ends[number % 2])
        table.abort(ROUTER, str(number)) if number % 5 == 0 else table.take(ROUTER)
    table.disconnect(ROUTER, now=0.0)
    table.expire(2 * GRACE_S)
    load = table.load(0.0)
    assert (load.num_waiting, load.num_waiting_tokens, table.num_unfinished) == (0, 0, 0)
    assert not table._streams
    assert not table._outboxes
