"""The router over real links to real replica hosts; only the engines are fake."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from cluster.link.links import Links
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.router import Router
from qwen3_ray.errors import OverloadedError, PromptTooLongError, UnavailableError
from qwen3_ray.request import FinishReason, Usage
from qwen3_ray.sampling_params import SamplingParams
from tests.cluster.link.fake_replica import (
    NUM_CACHED_TOKENS,
    TOKEN,
    FakeReplica,
    running_replica,
    soon,
    until,
)


@asynccontextmanager
async def routing(**replicas: FakeReplica) -> AsyncIterator[tuple[Router, Links]]:
    links = Links(TOKEN)
    links.set_members(addresses_of(replicas))
    await until(lambda: set(links.ready) == set(replicas))
    try:
        yield Router(links, model="m", tokenizer=None, hold_s=10.0), links
    finally:
        await links.close()


def addresses_of(replicas: Mapping[str, FakeReplica]) -> dict[str, str]:
    return {replica_id: replica.address for replica_id, replica in replicas.items()}


def make_request(
    max_tokens: int = 8, num_prompt_tokens: int = 3, **fields: int
) -> InferenceRequest:
    params = SamplingParams(max_tokens=max_tokens, **fields)
    return InferenceRequest(prompt=(1,) * num_prompt_tokens, params=params)


async def read(router: Router, request: InferenceRequest) -> tuple[Generation, list[Chunk]]:
    async with router.generate(request) as generation:
        return generation, await generation.collect()


async def collect(router: Router, request: InferenceRequest) -> Chunk:
    _, (chunk,) = await read(router, request)
    return chunk


async def run(replica: FakeReplica, *, num_requests: int = 1) -> None:
    """Step the engine until it has had that many requests and has finished them."""
    commands = replica.engine.commands
    await until(lambda: sum(len(command.submit) for command in commands) >= num_requests)
    while replica.engine.running:
        replica.step()
        await asyncio.sleep(0)


async def test_an_answer_travels_all_the_way() -> None:
    async with running_replica() as replica, routing(r=replica) as (router, _):
        answer = asyncio.create_task(read(router, make_request()))
        await run(replica)
        generation, (chunk,) = await soon(answer)
    assert (chunk.text, chunk.token_ids) == ("abcdefgh", tuple(b"abcdefgh"))
    assert chunk.finish_reason is FinishReason.LENGTH
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (3, 8)


async def test_leaving_the_block_stops_the_engine() -> None:
    async with running_replica() as replica, routing(r=replica) as (router, _):
        request = make_request()
        opening = router.generate(request)
        entering = asyncio.create_task(opening.__aenter__())
        await until(lambda: bool(replica.engine.running))
        replica.step()
        await soon(entering)
        await opening.__aexit__(None, None, None)
        await until(lambda: replica.engine.aborted == [request.request_id])


@asynccontextmanager
async def small_and_large(
    *, max_waiting_requests: int
) -> AsyncIterator[tuple[Router, FakeReplica, FakeReplica]]:
    """Two replicas with one request each; the small one has less work, and queues few."""
    async with (
        running_replica(max_waiting_requests=max_waiting_requests) as small,
        running_replica() as large,
        routing(a=small, b=large) as (router, _),
    ):
        first = asyncio.create_task(collect(router, make_request()))
        await until(lambda: len(small.engine.running) == 1)
        second = asyncio.create_task(collect(router, make_request(num_prompt_tokens=100)))
        await until(lambda: len(large.engine.running) == 1)
        yield router, small, large
        await run(small)
        await run(large)
        assert [chunk.text for chunk in await soon(asyncio.gather(first, second))] == [
            "abcdefgh"
        ] * 2


async def test_a_full_replica_passes_the_request_on() -> None:
    async with small_and_large(max_waiting_requests=1) as (router, _, large):
        third = asyncio.create_task(collect(router, make_request()))
        await until(lambda: len(large.engine.running) == 2)
        await run(large)
        assert (await soon(third)).text == "abcdefgh"


async def test_several_answers_travel_with_their_logprobs_and_those_of_the_prompt() -> None:
    request = make_request(n=3, logprobs=1, prompt_logprobs=1)
    async with running_replica() as replica, routing(r=replica) as (router, _):
        answering = asyncio.create_task(read(router, request))
        await run(replica, num_requests=3)
        generation, chunks = await soon(answering)
    assert [command.submit[0].request_id for command in replica.engine.commands]
    assert len(replica.engine.commands[0].submit) == 3
    scores = [(entry.token_id, entry.logprob) for entry in generation.prompt_logprobs]
    assert scores == [(1, -1 / 8)] * 2
    for chunk in chunks:
        assert tuple(entry.token_id for entry in chunk.logprobs) == chunk.token_ids
    assert [chunk.text for chunk in chunks] == ["abcdefgh"] * 3
    assert generation.usage == Usage(
        prompt_tokens=3, completion_tokens=24, cached_tokens=NUM_CACHED_TOKENS
    )


async def test_a_replica_with_room_for_some_of_the_answers_passes_all_of_them_on() -> None:
    async with small_and_large(max_waiting_requests=2) as (router, small, large):
        opening = router.generate(make_request(n=3))
        entering = asyncio.create_task(opening.__aenter__())
        await until(lambda: len(large.engine.running) == 4)
        await until(lambda: len(small.engine.aborted) == 1)
        large.step()
        await soon(entering)
        await opening.__aexit__(None, None, None)
        await until(lambda: len(large.engine.running) == 1)


async def test_when_all_are_full_the_client_learns_it_at_once() -> None:
    async with (
        running_replica(max_waiting_tokens=10) as first,
        running_replica(max_waiting_tokens=10) as second,
        routing(a=first, b=second) as (router, _),
    ):
        first_answer = asyncio.create_task(collect(router, make_request(num_prompt_tokens=9)))
        await until(lambda: bool(first.engine.running or second.engine.running))
        second_answer = asyncio.create_task(collect(router, make_request(num_prompt_tokens=9)))
        await until(lambda: bool(first.engine.running and second.engine.running))
        with pytest.raises(OverloadedError) as caught:
            await soon(collect(router, make_request(num_prompt_tokens=9)))
        assert caught.value.retry_after_s > 0
        await run(first)
        await run(second)
        await soon(asyncio.gather(first_answer, second_answer))


async def test_a_replica_lost_in_the_middle_breaks_its_streams_and_no_other() -> None:
    async with (
        running_replica() as first,
        running_replica() as second,
        routing(a=first, b=second) as (router, links),
    ):
        doomed = asyncio.create_task(collect(router, make_request()))
        await until(lambda: bool(first.engine.running))
        other = asyncio.create_task(collect(router, make_request()))
        await until(lambda: bool(second.engine.running))
        first.step()
        await first.server.stop()
        with pytest.raises(UnavailableError):
            await soon(doomed)
        await run(second)
        assert (await soon(other)).text == "abcdefgh"
        assert set(links.ready) == {"b"}


async def test_a_request_that_was_queued_at_a_lost_replica_runs_on_another() -> None:
    async with (
        running_replica() as first,
        running_replica() as second,
        routing(a=first, b=second) as (router, _),
    ):
        answer = asyncio.create_task(collect(router, make_request()))
        await until(lambda: bool(first.engine.running))
        await first.server.stop()
        await run(second)
        assert (await soon(answer)).text == "abcdefgh"


async def test_a_request_waits_while_the_only_replica_is_replaced() -> None:
    async with running_replica() as old, routing(old=old) as (router, links):
        links.set_members({})
        answer = asyncio.create_task(collect(router, make_request()))
        async with running_replica() as new:
            links.set_members({"new": new.address})
            await run(new)
            assert (await soon(answer)).text == "abcdefgh"


async def test_limits_come_from_the_replica() -> None:
    async with running_replica() as replica, routing(r=replica) as (router, _):
        with pytest.raises(PromptTooLongError):
            await soon(collect(router, make_request(num_prompt_tokens=100_000)))
        assert router.model_info.max_model_len == 100_000
