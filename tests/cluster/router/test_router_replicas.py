"""The router against replicas that refuse, break, stand still or come late."""

import asyncio

import pytest

from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import (
    EngineError,
    OverloadedError,
    Qwen3RayError,
    RequestError,
    UnavailableError,
)
from tests.cluster.router.rig import collect, make_request, make_router


async def test_the_replica_with_the_least_work_gets_the_request() -> None:
    first, second = FakeReplica("replica-1"), FakeReplica("replica-2")
    first.load = link.Load(num_waiting_tokens=100)
    router = make_router(first, second)
    await collect(router, make_request())
    assert (len(first.submits), len(second.submits)) == (0, 1)


async def test_a_burst_spreads_although_no_report_has_come_back() -> None:
    replicas = [FakeReplica(f"replica-{number}") for number in range(3)]
    for replica in replicas:
        replica.hold_after = 0
    router = make_router(*replicas)
    async with asyncio.TaskGroup() as group:
        for _ in range(9):
            group.create_task(collect(router, make_request()))
        for replica in replicas:
            await replica.wait(num_submits=3)
        assert [len(replica.submits) for replica in replicas] == [3, 3, 3]
        for replica in replicas:
            replica.released.set()


@pytest.mark.parametrize("refusal", [OverloadedError("full"), UnavailableError("draining")])
async def test_a_refused_request_goes_to_the_next_best(refusal: Qwen3RayError) -> None:
    first, second = FakeReplica("replica-1"), FakeReplica("replica-2")
    first.refusal = refusal
    async with make_router(first, second).generate(make_request()) as generation:
        (chunk,) = await generation.collect()
    assert len(chunk.token_ids) == 5
    assert generation.fingerprint == "replica-2-numerics"
    assert len(first.submits) == 1


async def test_when_all_are_full_the_client_is_told_when_to_come_back() -> None:
    replicas = [FakeReplica(f"replica-{number}") for number in range(5)]
    for wait_s, replica in enumerate(replicas, start=2):
        replica.refusal = OverloadedError("full", retry_after_s=wait_s)
    with pytest.raises(OverloadedError) as caught:
        await collect(make_router(*replicas, hold_s=60), make_request())
    assert caught.value.retry_after_s == 2
    assert [len(replica.submits) for replica in replicas] == [1] * 5


async def test_a_request_error_of_a_replica_is_final() -> None:
    first, second = FakeReplica("replica-1"), FakeReplica("replica-2")
    first.refusal = RequestError("prompt", "not with me")
    with pytest.raises(RequestError, match="not with me"):
        await collect(make_router(first, second), make_request())
    assert second.submits == []


async def test_a_request_that_breaks_replicas_is_given_up() -> None:
    replicas = [FakeReplica(f"replica-{number}") for number in range(6)]
    for replica in replicas:
        replica.refusal = UnavailableError("the link broke")
    with pytest.raises(UnavailableError):
        await collect(make_router(*replicas, hold_s=60), make_request())
    assert sum(len(replica.submits) for replica in replicas) == 3


async def test_a_request_waits_for_the_replica_that_comes_late() -> None:
    links = FakeLinks()
    router = Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=30)
    waiting = asyncio.create_task(collect(router, make_request()))
    await asyncio.sleep(0)
    assert not router.ready
    links.add(FakeReplica())
    assert len((await waiting).token_ids) == 5


async def test_a_request_that_met_a_draining_replica_waits_for_its_successor() -> None:
    old = FakeReplica("replica-1")
    old.refusal = UnavailableError("draining")
    links = FakeLinks(old)
    router = Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=30)
    waiting = asyncio.create_task(collect(router, make_request()))
    await old.wait(num_submits=1)
    links.add(FakeReplica("replica-2"))
    assert len((await waiting).token_ids) == 5
    assert len(old.submits) == 1


async def test_without_a_replica_a_request_fails_in_time() -> None:
    with pytest.raises(UnavailableError, match="no replica"):
        await collect(make_router(hold_s=0.01), make_request())


async def test_a_replica_lost_in_the_middle_is_an_error_after_what_had_come() -> None:
    replica = FakeReplica()
    replica.break_after = 2
    router = make_router(replica, FakeReplica("replica-2"))
    async with router.generate(make_request()) as generation:
        seen = [await anext(generation), await anext(generation)]
        with pytest.raises(UnavailableError):
            await anext(generation)
    assert [len(chunk.token_ids) for chunk in seen] == [1, 1]


async def test_leaving_the_block_aborts_what_is_unfinished() -> None:
    replica = FakeReplica()
    async with make_router(replica).generate(make_request()) as generation:
        await anext(generation)
    assert replica.aborted == [generation.id]


async def test_cancelling_a_request_that_waits_for_its_first_token_aborts_it() -> None:
    replica = FakeReplica()
    replica.hold_after = 0
    waiting = asyncio.create_task(collect(make_router(replica), make_request()))
    await replica.wait(num_submits=1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert replica.aborted == [replica.submits[0].request_id]


async def test_a_replica_that_skips_tokens_is_an_engine_error() -> None:
    class Skipping(FakeReplica):
        def open(self, submit: link.Submit):  # noqa: ANN202
            stream = super().open(submit)
            stream._text = "xx"  # it believes that two tokens are out
            return stream

    replica = Skipping()
    with pytest.raises(EngineError, match="number 2"):
        await collect(make_router(replica), make_request())
    assert replica.aborted


async def test_a_bad_request_is_refused_at_once_while_no_replica_is_up() -> None:
    links = FakeLinks(FakeReplica())
    router = Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=60)
    await collect(router, make_request())
    links.ready.clear()
    async with asyncio.timeout(5):
        with pytest.raises(RequestError):
            await collect(router, make_request((999,)))
