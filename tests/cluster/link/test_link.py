"""Both ends of a link over real gRPC on loopback, with an engine stepped by hand."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from cluster.link.client import LinkClient, LinkStream
from cluster.link.protocol import BUSY_HEARTBEAT_S, LINK_VERSION, MAX_MESSAGE_BYTES, TOKEN_KEY
from protos.v1 import link_pb2 as link
from protos.v1.link_pb2_grpc import LinkServiceStub
from qwen3_ray.errors import (
    EngineError,
    OverloadedError,
    RequestAbortedError,
    RequestError,
    UnavailableError,
)
from tests.cluster.link.fake_replica import (
    LIMIT_S,
    TOKEN,
    FakeReplica,
    make_submit,
    running_replica,
    soon,
    until,
)


@asynccontextmanager
async def linked(replica: FakeReplica, **options: float) -> AsyncIterator[LinkClient]:
    client = LinkClient(replica.address, TOKEN, **options)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


class BlackHole:
    """A TCP relay that can stop relaying: both ends stay connected and hear nothing."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def swallow(self) -> None:
        self._open.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.append(asyncio.create_task(self._relay(source, sink)))

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self._open.wait()
            sink.write(data)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        self._server.close()


async def read_all(stream: LinkStream) -> list[link.StreamDelta]:
    return [delta async for delta in stream]


def joined(deltas: list[link.StreamDelta]) -> tuple[bytes, str]:
    return (
        bytes(id_ for delta in deltas for id_ in delta.token_ids),
        "".join(delta.text for delta in deltas),
    )


async def run_steps(replica: FakeReplica, count: int) -> None:
    for _ in range(count):
        replica.step()
        await asyncio.sleep(0)


async def test_a_request_goes_up_and_its_answer_comes_down() -> None:
    async with running_replica() as replica, linked(replica) as client:
        assert client.hello.model == "m"
        assert client.hello.protocol_version == LINK_VERSION
        stream = client.open(make_submit("a", prompt=[5, 6, 7]))
        await until(lambda: bool(replica.engine.running))
        (submit,) = replica.engine.commands[0].submit
        assert list(submit.prompt_token_ids) == [5, 6, 7]
        await run_steps(replica, 8)
        deltas = await soon(read_all(stream))
        assert joined(deltas) == (b"abcdefgh", "abcdefgh")
        assert deltas[-1].finish_reason == link.LENGTH
        assert client.num_streams == 0


async def test_submits_made_together_reach_the_engine_together() -> None:
    async with running_replica() as replica, linked(replica) as client:
        for number in range(64):
            client.open(make_submit(str(number)))
        await until(lambda: len(replica.engine.running) == 64)
        assert [len(command.submit) for command in replica.engine.commands] == [64]


async def test_64_prompts_of_32k_tokens_pass_at_once() -> None:
    prompt = [151_935] * 32_768
    async with running_replica() as replica, linked(replica) as client:
        for number in range(64):
            client.open(make_submit(str(number), prompt))
        await until(lambda: len(replica.engine.running) == 64)
        assert all(command.ByteSize() <= MAX_MESSAGE_BYTES for command in replica.engine.commands)


async def test_more_than_a_frame_holds_goes_into_several() -> None:
    prompt = [151_935] * 90_000
    async with running_replica() as replica, linked(replica) as client:
        for number in range(64):
            client.open(make_submit(str(number), prompt))
        await until(lambda: len(replica.engine.running) == 64)
        assert len(replica.engine.commands) > 1
        names = [
            submit.request_id for command in replica.engine.commands for submit in command.submit
        ]
        assert [name.partition("#")[0] for name in names] == [str(number) for number in range(64)]


def dial(
    channel: grpc.aio.Channel, token: str = TOKEN
) -> "grpc.aio.StreamStreamCall[link.RouterFrame, link.ReplicaFrame]":
    return LinkServiceStub(channel).Connect(metadata=((TOKEN_KEY, token),))


async def test_a_step_of_many_streams_is_one_frame() -> None:
    async with running_replica() as replica, grpc.aio.insecure_channel(replica.address) as channel:
        call = dial(channel)
        hello = await soon(call.read())
        assert hello.HasField("hello")
        names = [str(number) for number in range(50)]
        await call.write(link.RouterFrame(submit=[make_submit(name) for name in names]))
        await until(lambda: len(replica.engine.running) == 50)
        for _ in range(8):
            replica.step()
            frame = await soon(call.read())
            while not frame.deltas:  # a heartbeat in between
                frame = await soon(call.read())
            assert [delta.request_id for delta in frame.deltas] == names
            assert not frame.HasField("hello")
        call.cancel()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "a-secre"])
async def test_a_wrong_token_is_unauthenticated(token: str) -> None:
    async with running_replica() as replica, grpc.aio.insecure_channel(replica.address) as channel:
        call = dial(channel, token)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(call.read())
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(UnavailableError, match="link token"):
            await LinkClient(replica.address, token).connect()


async def test_no_token_at_all_is_unauthenticated() -> None:
    async with running_replica() as replica, grpc.aio.insecure_channel(replica.address) as channel:
        call = LinkServiceStub(channel).Connect()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(call.read())
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_nobody_there_is_unavailable() -> None:
    async with running_replica() as replica:
        address = replica.address
    with pytest.raises(UnavailableError, match="link to the replica at"):
        await soon(LinkClient(address, TOKEN).connect())


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


async def test_rejects_are_raised_as_what_they_are() -> None:
    async with (
        running_replica(max_waiting_requests=1, max_model_len=50) as replica,
        linked(replica) as client,
    ):
        accepted, refused = client.open(make_submit("a")), client.open(make_submit("b"))
        too_long = client.open(make_submit("c", prompt=[1] * 60))
        unknown = client.attach("nobody", 0)
        with pytest.raises(OverloadedError) as overloaded:
            await soon(anext(refused))
        assert overloaded.value.retry_after_s >= 1.0
        with pytest.raises(RequestError, match="50 tokens") as invalid:
            await soon(anext(too_long))
        assert invalid.value.param == "prompt"
        with pytest.raises(UnavailableError, match="no such stream"):
            await soon(anext(unknown))
        await run_steps(replica, 8)
        assert joined(await soon(read_all(accepted)))[0] == b"abcdefgh"
        replica.host.drain("the replica is shutting down")
        with pytest.raises(UnavailableError, match="shutting down"):
            await soon(anext(client.open(make_submit("d"))))


async def test_an_id_cannot_be_opened_twice() -> None:
    async with running_replica() as replica, linked(replica) as client:
        client.open(make_submit("a"))
        with pytest.raises(ValueError, match="open already"):
            client.open(make_submit("a"))


async def test_closing_a_stream_aborts_it_in_the_next_frame() -> None:
    async with running_replica() as replica, linked(replica) as client:
        stream, other = client.open(make_submit("a")), client.open(make_submit("b"))
        await until(lambda: len(replica.engine.running) == 2)
        replica.step()
        await soon(anext(stream))
        await stream.aclose()
        await until(lambda: replica.engine.aborted == ["a"])
        with pytest.raises(RequestAbortedError):
            await soon(anext(stream))
        await stream.aclose()
        await run_steps(replica, 7)
        assert joined(await soon(read_all(other)))[0] == b"abcdefgh"
        await other.aclose()
        assert replica.engine.aborted == ["a"]


async def test_a_stop_string_ends_the_answer_and_the_engines_work() -> None:
    async with running_replica() as replica, linked(replica) as client:
        stream = client.open(make_submit("a", stop=["cd"]))
        await until(lambda: bool(replica.engine.running))
        await run_steps(replica, 6)
        deltas = await soon(read_all(stream))
        assert joined(deltas) == (b"abcd", "ab")
        assert (deltas[-1].finish_reason, deltas[-1].stop_string) == (link.STOP, "cd")
        assert replica.engine.aborted == ["a"]


async def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    async with running_replica() as replica, linked(replica) as client:
        slow, fast = client.open(make_submit("slow")), client.open(make_submit("fast"))
        await until(lambda: len(replica.engine.running) == 2)
        await run_steps(replica, 8)
        assert joined(await soon(read_all(fast)))[0] == b"abcdefgh"
        assert joined(await soon(read_all(slow)))[0] == b"abcdefgh"


ANSWER = "a€b, stop".encode()
STOPS = ["stop"]
UNDISTURBED = (ANSWER, "a€b, ")


@pytest.mark.parametrize("num_received", range(len(ANSWER)))
async def test_a_router_killed_after_any_token_is_followed_by_one_that_gets_the_rest(
    num_received: int,
) -> None:
    async with running_replica() as replica:
        replica.engine.answers["a"] = ANSWER
        received: list[link.StreamDelta] = []
        async with linked(replica) as first:
            stream = first.open(make_submit("a", max_tokens=50, stop=STOPS))
            await until(lambda: bool(replica.engine.running))
            for _ in range(num_received):
                replica.step()
                received.append(await soon(anext(stream)))
        with pytest.raises(UnavailableError, match="closed"):
            await soon(anext(stream))
        await run_steps(replica, 2)  # the orphan runs on
        async with linked(replica) as second:
            rest = second.attach("a", num_received)
            await until(lambda: replica.host.is_busy(2) or not replica.engine.running)
            await run_steps(replica, len(ANSWER))
            received += await soon(read_all(rest))
        assert joined(received) == UNDISTURBED
        assert received[-1].stop_string == "stop"
        indexes = [delta.from_index for delta in received if delta.token_ids]
        assert indexes == sorted(set(indexes))


async def test_the_same_router_attaches_again_over_a_new_link() -> None:
    async with running_replica() as replica:
        async with linked(replica) as first:
            stream = first.open(make_submit("a"))
            await until(lambda: bool(replica.engine.running))
            replica.step()
            await soon(anext(stream))
        async with linked(replica) as second:
            again = second.attach("a", 1)
            await run_steps(replica, 7)
            assert joined(await soon(read_all(again)))[0] == b"bcdefgh"


async def test_a_router_whose_stream_another_takes_is_told() -> None:
    async with running_replica() as replica, linked(replica) as first, linked(replica) as second:
        stream = first.open(make_submit("a"))
        await until(lambda: bool(replica.engine.running))
        taken = second.attach("a", 0)
        with pytest.raises(RequestAbortedError, match="another router"):
            await soon(anext(stream))
        await run_steps(replica, 8)
        assert joined(await soon(read_all(taken)))[0] == b"abcdefgh"


async def test_an_orphan_whose_grace_is_over_is_aborted_in_the_engine() -> None:
    async with running_replica(orphan_grace_s=0.05) as replica:
        async with linked(replica) as client:
            client.open(make_submit("a"))
            await until(lambda: bool(replica.engine.running))
            replica.host.expire()
            assert replica.engine.aborted == []

        def expired() -> bool:
            replica.host.expire()
            return replica.engine.aborted == ["a"]

        await until(expired)
        async with linked(replica) as client:
            with pytest.raises(UnavailableError, match="no such stream"):
                await soon(anext(client.attach("a", 0)))


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


async def test_another_protocol_version_is_refused() -> None:
    async with running_replica() as replica:
        replica.host.hello().protocol_version = LINK_VERSION + 1
        with pytest.raises(UnavailableError, match=f"speaks link version {LINK_VERSION + 1}"):
            await LinkClient(replica.address, TOKEN).connect()
