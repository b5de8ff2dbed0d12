"""The router against replicas that refuse, break, stand still or come late."""

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.router import STALLED_AFTER_S, Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import (
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    PromptTooLongError,
    Qwen3RayError,
    RequestError,
    UnavailableError,
)
from qwen3_ray.request import FinishReason, Usage
from qwen3_ray.sampling_params import SamplingParams


def make_router(*replicas: FakeReplica, hold_s: float = 0.2) -> Router:
    links = FakeLinks(*replicas)
    return Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=hold_s)


def make_request(prompt: str | tuple[int, ...] = "hello", **params: object) -> InferenceRequest:
    values = {"max_tokens": 5, "seed": 3, **params}
    return InferenceRequest(model="fake", prompt=prompt, params=SamplingParams(**values))


async def collect(router: Router, request: InferenceRequest) -> Chunk:
    async with router.generate(request) as generation:
        return await generation.collect()


async def test_an_answer_comes_in_chunks_and_ends_with_reason_and_usage() -> None:
    replica = FakeReplica()
    async with make_router(replica).generate(make_request()) as generation:
        chunks = [chunk async for chunk in generation]
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 5
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + [FinishReason.LENGTH]
    assert chunks[-1].usage == Usage(prompt_tokens=5, completion_tokens=5)
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
        max_tokens=6,
        seed=-5,
        stop=("zz", "yy"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
    )
    await collect(make_router(replica), InferenceRequest(prompt=(9, 8), params=params))
    submit = replica.submits[0]
    assert tuple(submit.prompt_token_ids) == (9, 8)
    assert submit.sampling == link.Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        max_tokens=6,
        seed=-5,
        stop=["zz", "yy"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        repetition_penalty=1.0,
        skip_special_tokens=True,
    )


async def test_a_seed_is_drawn_told_and_repeats_the_answer() -> None:
    router = make_router(FakeReplica())
    async with router.generate(make_request(seed=None)) as generation:
        first = await generation.collect()
    async with router.generate(make_request(seed=None)) as other:
        assert other.seed != generation.seed
    again = await collect(router, make_request(seed=generation.seed))
    assert again.text == first.text


async def test_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    replica = FakeReplica()
    await collect(make_router(replica), make_request(top_k=10**15))
    assert replica.submits[0].sampling.top_k == replica.hello.vocab_size


async def test_no_limit_of_tokens_means_the_room_in_the_context() -> None:
    chunk = await collect(make_router(FakeReplica(max_model_len=64)), make_request(max_tokens=None))
    assert chunk.usage == Usage(prompt_tokens=5, completion_tokens=59)


async def test_a_stop_string_and_a_stop_token_are_told_apart() -> None:
    router = make_router(FakeReplica())
    text = (await collect(router, make_request())).text
    async with router.generate(make_request(stop_token_ids=range(97, 123))) as generation:
        chunk = await generation.collect()
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
        chunk = await generation.collect()
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


async def test_a_bad_request_is_refused_at_once_while_no_replica_is_up() -> None:
    links = FakeLinks(FakeReplica())
    router = Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=60)
    await collect(router, make_request())
    links.ready.clear()
    async with asyncio.timeout(5):
        with pytest.raises(RequestError):
            await collect(router, make_request((999,)))


async def test_many_streams_are_independent() -> None:
    router = make_router(FakeReplica("replica-1"), FakeReplica("replica-2"))
    alone = [(await collect(router, make_request(seed=seed))).text for seed in range(20)]
    async with AsyncExitStack() as stack:
        requests = [make_request(seed=seed) for seed in range(20)]
        opened = [await stack.enter_async_context(router.generate(item)) for item in requests]
        together = [(await generation.collect()).text for generation in opened]
    assert together == alone
