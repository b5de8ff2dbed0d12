"""What is lost is noticed, in time, and told as what it is."""

import asyncio
import time

import pytest

from cluster.link.client import LinkClient
from cluster.link.protocol import (
    BUSY_HEARTBEAT_S,
)
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import (
    EngineError,
    RequestError,
    UnavailableError,
)
from tests.cluster.link.black_hole import BlackHole
from tests.cluster.link.fake_replica import (
    LIMIT_S,
    TOKEN,
    make_submit,
    running_replica,
    soon,
    until,
)
from tests.cluster.link.rig import joined, linked, read_all, run_steps


async def test_heartbeats_carry_the_load_and_come_often_while_streams_run() -> None:
    async with running_replica() as replica, linked(replica) as client:
        stream = client.open(make_submit("a", prompt=[1] * 7))
        await until(lambda: client.load.num_waiting_tokens == 7)
        ages = {client.load.step_age_s}
        started = time.monotonic()
        while len(ages) < 6:  # without steps, only heartbeats change the age
            ages.add(client.load.step_age_s)
            await asyncio.sleep(0)
        assert time.monotonic() - started < 5 * BUSY_HEARTBEAT_S + 2.0
        replica.step()
        await soon(anext(stream))
        assert client.load.num_waiting_tokens == 0


async def test_a_lost_engine_makes_streams_unavailable_after_what_had_come() -> None:
    async with running_replica() as replica, linked(replica) as client:
        stream = client.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        replica.step()
        replica.host.lose("rank 1 died")
        replica.server.notify()
        assert (await soon(anext(stream))).text == "a"
        with pytest.raises(UnavailableError, match="rank 1 died"):
            await soon(anext(stream))


async def test_a_step_makes_the_load_young_again() -> None:
    async with running_replica() as replica, linked(replica) as client:
        client.open(make_submit("a"))
        await until(lambda: client.load.step_age_s > 0.3)
        replica.step()
        await until(lambda: client.load.step_age_s < 0.3)


async def test_a_router_that_the_network_swallowed_is_noticed_by_the_replica() -> None:
    async with running_replica(orphan_grace_s=0.01) as replica:
        hole = BlackHole(replica.address)
        client = LinkClient(await hole.start(), TOKEN)
        await client.connect()
        client.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        hole.swallow()

        def aborted() -> bool:
            replica.host.expire()
            return replica.engine.aborted == ["a"]

        await until(aborted)
        await client.close()
        await hole.stop()


async def test_an_engine_error_ends_its_stream_alone() -> None:
    async with running_replica() as replica, linked(replica) as client:
        bad, good = client.open(make_submit("bad")), client.open(make_submit("good"))
        await until(lambda: len(replica.engine.running) == 2)
        engine_id = next(iter(replica.engine.running))
        del replica.engine.running[engine_id]
        failure = link.EngineDelta(
            request_id=engine_id, finish_reason=link.ERROR, error="not finite"
        )
        replica.host.on_step(link.EngineEvent(deltas=[failure]))
        await run_steps(replica, 8)
        with pytest.raises(EngineError, match="not finite"):
            await soon(anext(bad))
        assert joined(await soon(read_all(good)))[0] == b"abcdefgh"


async def test_an_engine_that_finds_fault_with_a_request_names_its_field() -> None:
    async with running_replica() as replica, linked(replica) as client:
        stream = client.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        failure = link.EngineDelta(
            request_id=next(iter(replica.engine.running)),
            finish_reason=link.ERROR,
            error="is no grammar",
            error_param="structured_outputs",
        )
        replica.host.on_step(link.EngineEvent(deltas=[failure]))
        replica.server.notify()
        with pytest.raises(RequestError) as caught:
            await soon(anext(stream))
    assert (caught.value.param, caught.value.message) == ("structured_outputs", "is no grammar")


async def test_a_replica_that_goes_away_breaks_the_link_and_its_streams() -> None:
    async with running_replica() as replica, linked(replica) as client:
        stream = client.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        await replica.server.stop()
        with pytest.raises(UnavailableError):
            await soon(anext(stream))
        await soon(client.wait_closed())
        assert not client.connected
        with pytest.raises(UnavailableError, match="not connected"):
            client.open(make_submit("b"))


async def test_silence_counts_as_a_broken_link() -> None:
    async with running_replica() as replica:
        hole = BlackHole(replica.address)
        client = LinkClient(await hole.start(), TOKEN, silence_limit_s=0.5)
        await client.connect()
        stream = client.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        replica.step()
        assert (await soon(anext(stream))).text == "a"
        hole.swallow()
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"silent for 0.5 s"):
            await soon(anext(stream))
        assert time.monotonic() - started < LIMIT_S / 2
        await client.close()
        await hole.stop()


async def test_a_link_with_little_to_say_is_not_silent() -> None:
    """Heartbeats alone keep a link for many times its limit of silence."""
    async with running_replica() as replica, linked(replica, silence_limit_s=0.4) as client:
        client.open(make_submit("a"))
        await until(lambda: client.load.step_age_s > 1.2)
        assert client.connected


async def test_a_stall_of_our_own_loop_is_not_the_peers_silence() -> None:
    async with running_replica() as replica, linked(replica, silence_limit_s=0.5) as client:
        stream = client.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        time.sleep(0.8)  # noqa: ASYNC251  (the stall)
        replica.step()
        assert (await soon(anext(stream))).text == "a"
        assert client.connected
