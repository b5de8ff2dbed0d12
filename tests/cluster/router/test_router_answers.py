"""Several answers to one prompt, their logprobs, and the prompt in front of them."""

import asyncio

import pytest

from cluster.link.logprobs import logprobs_of
from cluster.link.requests import request_of
from cluster.router.inference import InferenceRequest
from cluster.router.router import Router
from cluster.router.testing import (
    FakeLinks,
    FakeReplica,
    FakeStream,
    fake_logprobs,
)
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import EngineError, OverloadedError, RequestError, UnavailableError
from qwen3_ray.request import TokenLogprobs, Usage
from qwen3_ray.sampling_params import SamplingParams
from tests.cluster.router.rig import collect, make_request, make_router


def logprobs(token_ids: tuple[int, ...] | bytes, num_top: int) -> tuple[TokenLogprobs, ...]:
    return tuple(logprobs_of(fake_logprobs(token_id, num_top)) for token_id in token_ids)


async def test_several_answers_come_from_one_replica_with_one_seed() -> None:
    first, second = FakeReplica("replica-1"), FakeReplica("replica-2")
    request = make_request(n=3, seed=None)
    async with make_router(first, second).generate(request) as generation:
        answers = await generation.collect()
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert len({answer.text for answer in answers}) == 3
    assert generation.usage == Usage(prompt_tokens=5, completion_tokens=15)
    requests = [request_of(submit) for submit in first.submits]
    assert [one.choice for one in requests] == [0, 1, 2]
    assert [one.request_id for one in requests] == [f"{request.request_id}-{i}" for i in range(3)]
    assert {one.params.seed for one in requests} == {generation.seed}
    assert second.submits == []


async def test_answers_interleave_and_each_is_what_it_would_be_alone() -> None:
    router = make_router(FakeReplica())
    async with router.generate(make_request(n=2)) as generation:
        whole = await generation.collect()
    async with router.generate(make_request(n=2)) as generation:
        chunks = [chunk async for chunk in generation]
    assert [chunk.index for chunk in chunks[:4]] == [0, 1, 0, 1]
    for answer in whole:
        pieces = [chunk for chunk in chunks if chunk.index == answer.index]
        assert "".join(piece.text for piece in pieces) == answer.text
        assert [piece.is_first for piece in pieces] == [True] + [False] * 4
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * 4
        assert pieces[-1].finish_reason == answer.finish_reason
    assert generation.finished


async def test_an_answer_may_end_before_the_others() -> None:
    router = make_router(FakeReplica())
    stops = range(97, 110)
    async with router.generate(make_request(n=4, stop_token_ids=stops, max_tokens=30)) as answers:
        chunks = []
        async for chunk in answers:
            chunks.append(chunk)
            assert answers.finished == (sum(one.finish_reason is not None for one in chunks) == 4)
    lengths = [sum(chunk.index == index for chunk in chunks) for index in range(4)]
    assert len(set(lengths)) > 1
    assert answers.usage.completion_tokens == sum(lengths)


async def test_leaving_the_block_stops_all_answers_that_are_unfinished() -> None:
    replica = FakeReplica()
    async with make_router(replica).generate(make_request(n=3)) as generation:
        await anext(generation)
    assert sorted(replica.aborted) == [f"{generation.id}-{choice}" for choice in range(3)]


async def test_a_client_that_leaves_before_the_first_token_stops_all_answers() -> None:
    replica = FakeReplica()
    replica.hold_after = 0
    waiting = asyncio.create_task(collect(make_router(replica), make_request(n=3)))
    await replica.wait(num_submits=3)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert len(replica.aborted) == 3


class Partial(FakeReplica):
    """Refuses all answers to a prompt but the first."""

    def open(self, submit: link.Submit) -> FakeStream:
        stream = super().open(submit)
        if submit.choice:
            stream.refusal = OverloadedError("full")
        return stream


async def test_a_replica_with_room_for_some_of_the_answers_is_full() -> None:
    first, second = Partial("replica-1"), FakeReplica("replica-2")
    async with make_router(first, second).generate(make_request(n=3)) as generation:
        answers = await generation.collect()
    assert generation.fingerprint == "replica-2-numerics"
    assert [len(answer.token_ids) for answer in answers] == [5, 5, 5]
    assert len(first.aborted) == 1
    assert len(second.submits) == 3


async def test_a_replica_lost_in_the_middle_is_an_error_of_all_answers() -> None:
    replica = FakeReplica()
    replica.break_after = 2
    async with make_router(replica).generate(make_request(n=2)) as generation:
        with pytest.raises(UnavailableError):
            await generation.collect()


@pytest.mark.parametrize("n", [1, 2])
async def test_logprobs_come_with_their_tokens(n: int) -> None:
    replica = FakeReplica()
    async with make_router(replica).generate(make_request(n=n, logprobs=2)) as generation:
        chunks = [chunk async for chunk in generation]
    for chunk in chunks:
        assert chunk.logprobs == logprobs(chunk.token_ids, 2)


async def test_logprobs_that_a_replica_forgets_are_an_engine_error() -> None:
    class Forgetful(FakeReplica):
        def open(self, submit: link.Submit) -> FakeStream:
            submit.sampling.ClearField("logprobs")
            return super().open(submit)

    with pytest.raises(EngineError, match="0 logprobs for 1 tokens"):
        await collect(make_router(Forgetful()), make_request(logprobs=2))


@pytest.mark.parametrize("n", [1, 3])
async def test_the_prompts_logprobs_are_complete_before_the_first_piece(n: int) -> None:
    request = make_request(n=n, prompt_logprobs=1)
    async with make_router(FakeReplica()).generate(request) as generation:
        assert tuple(generation.prompt_logprobs) == logprobs(b"ello", 1)
        chunks = [chunk async for chunk in generation]
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 5 * n


@pytest.mark.parametrize(
    ("params", "asked"),
    [
        ({"logprobs": 2}, 2),
        ({"logprobs": 2, "prompt_logprobs": 1}, 2),
        ({"logprobs": 0, "prompt_logprobs": 3}, 3),
        ({"prompt_logprobs": 0}, 0),
        ({}, None),
    ],
    ids=str,
)
async def test_an_echo_with_logprobs_scores_the_prompt(
    params: dict[str, int], asked: int | None
) -> None:
    replica = FakeReplica()
    await collect(make_router(replica), make_request(echo=True, **params))
    assert request_of(replica.submits[0]).params.prompt_logprobs == asked


async def test_without_an_echo_logprobs_leave_the_prompt_alone() -> None:
    replica = FakeReplica()
    await collect(make_router(replica), make_request(logprobs=2))
    assert request_of(replica.submits[0]).params.prompt_logprobs is None


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("héllo", "héllo"),
        (tuple("héllo".encode()), "héllo"),
        ((104, 0xC3), "h�"),
        ((0, 104), "\0h"),
    ],
    ids=["text", "ids", "half a character", "special token"],
)
async def test_an_echo_begins_every_answer_with_the_prompt(
    prompt: str | tuple[int, ...], text: str
) -> None:
    request = make_request(prompt, n=2, echo=True)
    async with make_router(FakeReplica()).generate(request) as generation:
        chunks = [chunk async for chunk in generation]
    for index in range(2):
        pieces = [chunk.text for chunk in chunks if chunk.index == index]
        assert pieces[0].startswith(text)
        assert [len(piece) for piece in pieces] == [len(text) + 1, 1, 1, 1, 1]


async def test_an_echo_without_a_tokenizer_is_ids_alone() -> None:
    router = Router(FakeLinks(FakeReplica()), model="fake", tokenizer=None)
    chunk = await collect(router, make_request((1, 2), echo=True))
    assert len(chunk.text) == 5


async def test_a_prompt_can_be_scored_without_an_answer() -> None:
    request = make_request(echo=True, max_tokens=0, logprobs=1)
    async with make_router(FakeReplica()).generate(request) as generation:
        (chunk,) = await generation.collect()
    assert (chunk.text, chunk.token_ids, chunk.finish_reason) == ("hello", (), "length")
    assert tuple(generation.prompt_logprobs) == logprobs(b"ello", 1)
    assert generation.usage == Usage(prompt_tokens=5, completion_tokens=0)


@pytest.mark.parametrize(
    ("limit", "side", "kept"),
    [(2, "left", "lo"), (2, "right", "he"), (9, "left", "hello"), (None, "right", "hello")],
)
async def test_a_prompt_is_cut_as_asked_and_the_echo_shows_it(
    limit: int | None, side: str, kept: str
) -> None:
    request = make_request(
        "hello", echo=True, truncate_prompt_tokens=limit, truncation_side=side, max_tokens=1
    )
    replica = FakeReplica()
    async with make_router(replica).generate(request) as generation:
        (chunk,) = await generation.collect()
    assert bytes(replica.submits[0].prompt_token_ids).decode() == kept
    assert chunk.text[:-1] == kept
    assert generation.usage.prompt_tokens == len(kept)


async def test_a_prompt_is_cut_to_what_the_context_holds() -> None:
    replica = FakeReplica(max_model_len=64)
    request = make_request("x" * 100, truncate_prompt_tokens=-1, max_tokens=4)
    await collect(make_router(replica), request)
    assert len(replica.submits[0].prompt_token_ids) == 60


async def test_bad_words_become_token_ids() -> None:
    replica = FakeReplica()
    await collect(make_router(replica), make_request(bad_words=["no"]))
    params = request_of(replica.submits[0]).params
    assert set(params.bad_words_token_ids) == {tuple(b"no"), tuple(b" no")}
    router = Router(FakeLinks(replica), model="fake", tokenizer=None)
    with pytest.raises(RequestError, match="needs a tokenizer"):
        await collect(router, make_request((1, 2), bad_words=["no"]))


async def test_cached_tokens_are_those_that_the_first_answer_found() -> None:
    class Cached(FakeReplica):
        """The other answers find what the first one has computed, besides."""

        def open(self, submit: link.Submit) -> FakeStream:
            stream = super().open(submit)
            stream.num_cached_tokens = 4 if submit.choice else 2
            return stream

    async with make_router(Cached()).generate(make_request(n=2)) as generation:
        assert [generation.usage.cached_tokens async for _ in generation] == [2] * 10
    assert generation.usage == Usage(prompt_tokens=5, completion_tokens=10, cached_tokens=2)


@pytest.mark.parametrize(
    ("fields", "param", "limit"),
    [
        ({"params": SamplingParams(max_tokens=0)}, "max_tokens", "at least 1 without echo, got 0"),
        ({"priority": 2**31}, "priority", f"got {2**31}"),
        ({"priority": -(2**31)}, "priority", f"got -{2**31}"),
        ({"cache_salt": "x" * 1025}, "cache_salt", "1024 characters, got 1025"),
        ({"cache_salt": "\ud800"}, "cache_salt", "Unicode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_out_of_range_is_not_built(
    fields: dict[str, object], param: str, limit: str
) -> None:
    with pytest.raises(RequestError, match=limit) as caught:
        InferenceRequest(prompt="x", **{"params": SamplingParams(), **fields})
    assert caught.value.param == param
