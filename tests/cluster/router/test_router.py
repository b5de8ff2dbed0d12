"""What the router makes of a request, and of what a replica answers."""

import threading
from contextlib import AsyncExitStack

import pytest

from cluster.link.requests import request_of
from cluster.router.inference import InferenceRequest
from cluster.router.router import STALLED_AFTER_S, Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import (
    ModelNotFoundError,
    PromptTooLongError,
    RequestError,
)
from qwen3_ray.request import FinishReason, GenerateRequest, Usage
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from tests.cluster.router.rig import collect, make_request, make_router


async def test_an_answer_comes_in_chunks_and_ends_with_reason_and_usage() -> None:
    replica = FakeReplica()
    async with make_router(replica).generate(make_request()) as generation:
        chunks = [chunk async for chunk in generation]
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 5
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + [FinishReason.LENGTH]
    assert generation.usage == Usage(prompt_tokens=5, completion_tokens=5)
    assert generation.prompt_token_ids == tuple(b"hello")
    assert generation.fingerprint == "replica-1-numerics"
    assert generation.id == replica.submits[0].request_id
    assert replica.aborted == []


async def test_collecting_joins_the_chunks() -> None:
    async with make_router(FakeReplica()).generate(make_request()) as generation:
        chunks = [chunk async for chunk in generation]
    whole = await collect(make_router(FakeReplica()), make_request())
    assert whole.text == "".join(chunk.text for chunk in chunks)
    assert whole.token_ids == tuple(id_ for chunk in chunks for id_ in chunk.token_ids)
    assert whole.finish_reason is FinishReason.LENGTH


async def test_every_parameter_reaches_the_replica() -> None:
    replica = FakeReplica()
    params = SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={5: 1.5},
        max_tokens=6,
        min_tokens=2,
        seed=-5,
        stop=("zz", "yy"),
        include_stop_str_in_output=True,
        stop_token_ids=(1, 2),
        ignore_eos=True,
        allowed_token_ids=(97, 98),
        logprobs=3,
        skip_special_tokens=False,
        structured_outputs=StructuredOutputs(regex="[a-z]+"),
    )
    request = InferenceRequest(prompt=(9, 8), params=params, priority=-3, cache_salt="me")
    await collect(make_router(replica), request)
    assert request_of(replica.submits[0]) == GenerateRequest(
        request_id=request.request_id,
        prompt_token_ids=(9, 8),
        params=params,
        priority=-3,
        cache_salt="me",
    )


async def test_a_seed_is_drawn_told_and_repeats_the_answer() -> None:
    router = make_router(FakeReplica())
    async with router.generate(make_request(seed=None)) as generation:
        (first,) = await generation.collect()
    async with router.generate(make_request(seed=None)) as other:
        assert other.seed != generation.seed
    again = await collect(router, make_request(seed=generation.seed))
    assert again.text == first.text


async def test_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    replica = FakeReplica()
    await collect(make_router(replica), make_request(top_k=10**15))
    assert replica.submits[0].sampling.top_k == replica.hello.vocab_size


async def test_no_limit_of_tokens_means_the_room_in_the_context() -> None:
    router = make_router(FakeReplica(max_model_len=64))
    async with router.generate(make_request(max_tokens=None)) as generation:
        await generation.collect()
    assert generation.usage == Usage(prompt_tokens=5, completion_tokens=59)


async def test_a_stop_string_and_a_stop_token_are_told_apart() -> None:
    router = make_router(FakeReplica())
    text = (await collect(router, make_request())).text
    async with router.generate(make_request(stop_token_ids=range(97, 123))) as generation:
        (chunk,) = await generation.collect()
    assert chunk.finish_reason is FinishReason.STOP
    assert chunk.stop_reason == chunk.token_ids[-1]
    letters = [chr(code) for code in range(97, 113)]
    chunk = await collect(router, make_request(stop=letters, max_tokens=40))
    assert chunk.stop_reason in letters
    assert text


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (
            InferenceRequest(model="other", prompt="x", params=SamplingParams()),
            ModelNotFoundError,
            "model",
        ),
        (make_request(""), RequestError, "prompt"),
        (make_request(()), RequestError, "prompt"),
        (make_request((1, 256)), RequestError, "prompt_token_ids"),
        (make_request((-1,)), RequestError, "prompt_token_ids"),
        (make_request("x" * 64), PromptTooLongError, "prompt"),
        (make_request(max_tokens=60), RequestError, "max_tokens"),
        (make_request(stop_token_ids=(256,)), RequestError, "stop_token_ids"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_bad_request_is_refused_before_any_replica_sees_it(
    request_: InferenceRequest, error: type[RequestError], param: str
) -> None:
    replica = FakeReplica()
    with pytest.raises(error) as caught:
        await collect(make_router(replica), request_)
    assert caught.value.param == param
    assert replica.submits == []


async def test_an_unknown_model_is_told_which_one_is_served() -> None:
    request = InferenceRequest(model="gpt", prompt="x", params=SamplingParams())
    with pytest.raises(ModelNotFoundError, match=r"'gpt'.*'fake' is served"):
        await collect(make_router(FakeReplica()), request)


async def test_text_needs_a_tokenizer_and_ids_do_not() -> None:
    router = Router(FakeLinks(FakeReplica()), model="fake", tokenizer=None)
    with pytest.raises(RequestError, match="no tokenizer"):
        await collect(router, make_request("text"))
    assert (await collect(router, make_request((1, 2)))).text


async def test_a_long_prompt_is_tokenised_off_the_event_loop() -> None:
    threads: dict[int, int] = {}

    class Spy(FakeTokenizer):
        def encode(self, text: str) -> list[int]:
            threads[len(text)] = threading.get_ident()
            return super().encode(text)

    links = FakeLinks(FakeReplica(max_model_len=10_000))
    router = Router(links, model="fake", tokenizer=Spy())
    await collect(router, make_request("x" * 100))
    await collect(router, make_request("x" * 9_000))
    assert threads[100] == threading.get_ident()
    assert threads[9_000] != threading.get_ident()


async def test_health_follows_links_and_steps() -> None:
    links = FakeLinks()
    router = Router(links, model="fake", tokenizer=None)
    assert (router.ready, router.healthy) == (False, False)
    replica = FakeReplica()
    links.add(replica)
    assert (router.ready, router.healthy) == (True, True)
    replica.load = link.Load(step_age_s=STALLED_AFTER_S)
    assert (router.ready, router.healthy) == (True, False)


async def test_model_info_outlives_the_replicas_that_told_it() -> None:
    links = FakeLinks()
    router = Router(links, model="fake", tokenizer=None)
    assert router.model_info.max_model_len == 0
    assert router.model_info.numerics == ""
    links.add(FakeReplica(max_model_len=77))
    info = router.model_info
    assert (info.max_model_len, info.numerics, info.num_replicas) == (77, "exact", 1)
    links.ready.clear()
    info = router.model_info
    assert (info.max_model_len, info.numerics, info.num_replicas) == (77, "exact", 0)


async def test_many_streams_are_independent() -> None:
    router = make_router(FakeReplica("replica-1"), FakeReplica("replica-2"))
    alone = [(await collect(router, make_request(seed=seed))).text for seed in range(20)]
    async with AsyncExitStack() as stack:
        requests = [make_request(seed=seed) for seed in range(20)]
        opened = [await stack.enter_async_context(router.generate(item)) for item in requests]
        together = [(await generation.collect())[0].text for generation in opened]
    assert together == alone
