"""A stream goes on for whoever attaches to it, and for nobody else."""

import pytest

from protos.v1 import link_pb2 as link
from qwen3_ray.errors import RequestAbortedError, UnavailableError
from tests.cluster.link.fake_replica import (
    NUM_CACHED_TOKENS,
    entry_of,
    make_submit,
    running_replica,
    soon,
    until,
)
from tests.cluster.link.rig import joined, linked, read_all, run_steps

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


async def test_who_attaches_gets_the_logprobs_that_are_missing() -> None:
    async with running_replica() as replica:
        submit = make_submit("a", prompt=[5, 6, 7, 8])
        submit.sampling.prompt_logprobs = submit.sampling.logprobs = 1
        async with linked(replica) as first:
            stream = first.open(submit)
            await until(lambda: bool(replica.engine.running))
            await run_steps(replica, 3)
            await soon(anext(stream))
        async with linked(replica) as second:
            rest = second.attach("a", 1, num_prompt_logprobs=2)
            await until(lambda: replica.host.is_busy(2))
            await run_steps(replica, 6)
            deltas = await soon(read_all(rest))
        assert deltas[0].prompt_logprobs_from == 3
        assert [entry.token_id for delta in deltas for entry in delta.prompt_logprobs] == [8]
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        assert logprobs == [entry_of(token_id) for token_id in b"bcdefgh"]
        assert {delta.num_cached_tokens for delta in deltas} == {NUM_CACHED_TOKENS}
