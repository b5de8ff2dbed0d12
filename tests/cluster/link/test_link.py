"""Both ends of a link over real gRPC on loopback, with an engine stepped by hand."""

import grpc
import pytest

from cluster.link.client import LinkClient
from cluster.link.protocol import (
    FRAME_TOKENS,
    LINK_VERSION,
    MAX_MESSAGE_BYTES,
    TOKEN_KEY,
)
from protos.v1 import link_pb2 as link
from protos.v1.link_pb2_grpc import LinkServiceStub
from qwen3_ray.errors import (
    OverloadedError,
    RequestAbortedError,
    RequestError,
    UnavailableError,
)
from tests.cluster.link.fake_replica import (
    TOKEN,
    make_submit,
    running_replica,
    soon,
    until,
)
from tests.cluster.link.rig import joined, linked, read_all, run_steps


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


async def test_logprobs_of_a_long_prompt_come_in_frames_that_follow_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.link.server.BUSY_HEARTBEAT_S", 60.0)  # none comes with a beat
    num_tokens = 100_000
    async with running_replica(max_model_len=200_000) as replica, linked(replica) as client:
        submit = make_submit("a", prompt=[200] * num_tokens)
        submit.sampling.prompt_logprobs = 1
        stream = client.open(submit)
        await until(lambda: bool(replica.engine.running))
        replica.step()
        deltas = []
        while sum(len(delta.prompt_logprobs) for delta in deltas) < num_tokens - 1:
            deltas.append(await soon(anext(stream)))
        assert len(deltas) == -(-num_tokens // FRAME_TOKENS)
        assert [delta.prompt_logprobs_from for delta in deltas] == [
            1 + number * FRAME_TOKENS for number in range(len(deltas))
        ]
        assert client.load.num_waiting_tokens == num_tokens
        await run_steps(replica, 8)
        assert joined(await soon(read_all(stream)))[0] == b"abcdefgh"


async def test_another_protocol_version_is_refused() -> None:
    async with running_replica() as replica:
        replica.host.hello().protocol_version = LINK_VERSION + 1
        with pytest.raises(UnavailableError, match=f"speaks link version {LINK_VERSION + 1}"):
            await LinkClient(replica.address, TOKEN).connect()
