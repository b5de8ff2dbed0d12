"""The gRPC skin: statuses, deadlines, cancellation, health and reflection."""

import asyncio
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.ingress.grpc_api import SERVICE, GrpcServer
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica
from protos.v1 import generate_pb2 as pb
from protos.v1 import generate_pb2_grpc as pb_grpc
from qwen3_ray import __version__
from qwen3_ray.errors import EngineError, OverloadedError, ResourcesError, UnavailableError

CODE = grpc.StatusCode


def make_request(prompt: str = "hello", **sampling: object) -> pb.GenerateRequest:
    values = {"max_tokens": 5, "seed": 3, **sampling}
    return pb.GenerateRequest(prompt=prompt, sampling=pb.SamplingParams(**values))


async def test_a_stream_is_the_answer_in_pieces(stub: pb_grpc.GenerateServiceStub) -> None:
    whole = await stub.Generate(make_request())
    chunks = [chunk async for chunk in stub.GenerateStream(make_request())]
    choice = whole.choices[0]
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert [id_ for chunk in chunks for id_ in chunk.choices[0].token_ids] == choice.token_ids
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [""] * 4 + ["length"]
    assert [chunk.HasField("usage") for chunk in chunks] == [False] * 4 + [True]
    assert chunks[-1].usage == whole.usage
    assert whole.usage == pb.Usage(prompt_tokens=5, completion_tokens=5, total_tokens=10)
    assert (whole.model, whole.seed, whole.system_fingerprint) == ("fake", 3, "replica-1-numerics")
    assert not choice.WhichOneof("stop_reason")


async def test_a_drawn_seed_repeats_the_answer(stub: pb_grpc.GenerateServiceStub) -> None:
    first = await stub.Generate(pb.GenerateRequest(prompt="hello"))
    sampling = pb.SamplingParams(seed=first.seed)
    again = await stub.Generate(pb.GenerateRequest(prompt="hello", sampling=sampling))
    assert again.choices == first.choices


async def test_stop_reasons_are_told_apart(stub: pb_grpc.GenerateServiceStub) -> None:
    letters = [chr(code) for code in range(97, 113)]
    answer = await stub.Generate(make_request(stop=letters, max_tokens=40))
    assert answer.choices[0].stop_string in letters
    answer = await stub.Generate(make_request(stop_token_ids=range(97, 123)))
    assert answer.choices[0].stop_token_id == answer.choices[0].token_ids[-1]


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize(
    ("request_", "code", "word"),
    [
        (pb.GenerateRequest(), CODE.INVALID_ARGUMENT, "prompt"),
        (make_request(""), CODE.INVALID_ARGUMENT, "prompt"),
        (make_request("x" * 64), CODE.INVALID_ARGUMENT, "prompt"),
        (
            pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[256])),
            CODE.INVALID_ARGUMENT,
            "prompt_token_ids",
        ),
        (
            pb.GenerateRequest(prompt_token_ids=pb.TokenIds()),
            CODE.INVALID_ARGUMENT,
            "prompt",
        ),
        (pb.GenerateRequest(model="other", prompt="x"), CODE.NOT_FOUND, "'fake' is served"),
        (make_request(max_tokens=-1), CODE.INVALID_ARGUMENT, "max_tokens"),
        (make_request(temperature=float("nan")), CODE.INVALID_ARGUMENT, "temperature"),
        (make_request(stop=[""]), CODE.INVALID_ARGUMENT, "stop"),
        (make_request(max_tokens=0), CODE.INVALID_ARGUMENT, "max_tokens"),
        (make_request(n=0), CODE.INVALID_ARGUMENT, "n: must be from 1 to 8"),
        (make_request(n=9), CODE.INVALID_ARGUMENT, "n: must be from 1 to 8"),
        (make_request(logprobs=21), CODE.INVALID_ARGUMENT, "logprobs: must be from 0 to 20"),
        (make_request(logit_bias={256: 1.0}), CODE.INVALID_ARGUMENT, "logit_bias"),
        (
            make_request(allowed_token_ids=pb.TokenIds()),
            CODE.INVALID_ARGUMENT,
            "allowed_token_ids: must hold at least one id",
        ),
        (
            make_request(structured_outputs=pb.StructuredOutputs()),
            CODE.INVALID_ARGUMENT,
            "structured_outputs: needs exactly one",
        ),
        (
            pb.GenerateRequest(prompt="x", truncation_side="up"),
            CODE.INVALID_ARGUMENT,
            "truncation_side: must be left or right, got 'up'",
        ),
        (pb.GenerateRequest(prompt="x", priority=-(2**31)), CODE.INVALID_ARGUMENT, "priority"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_input_is_named_and_the_server_serves_on(
    stub: pb_grpc.GenerateServiceStub,
    method: str,
    request_: pb.GenerateRequest,
    code: grpc.StatusCode,
    word: str,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stub, method, request_)
    assert caught.value.code() == code
    assert word in caught.value.details()
    assert (await stub.Generate(make_request())).choices


async def call(
    stub: pb_grpc.GenerateServiceStub,
    method: str,
    request: pb.GenerateRequest,
    timeout_s: float | None = None,
) -> None:
    if method == "Generate":
        await stub.Generate(request, timeout=timeout_s)
    else:
        await collect(stub.GenerateStream(request, timeout=timeout_s))


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (OverloadedError("full", retry_after_s=2.5), CODE.RESOURCE_EXHAUSTED, "2.5"),
        (UnavailableError("draining"), CODE.UNAVAILABLE, "1"),
        (EngineError("step 5: NaN"), CODE.INTERNAL, None),
        (ZeroDivisionError("a secret"), CODE.INTERNAL, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_have_a_status_and_say_when_to_come_back(
    stub: pb_grpc.GenerateServiceStub,
    replica: FakeReplica,
    method: str,
    error: Exception,
    code: grpc.StatusCode,
    retry_after: str | None,
) -> None:
    replica.refusal = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stub, method, make_request())
    assert caught.value.code() == code
    assert "secret" not in caught.value.details()
    assert dict(caught.value.trailing_metadata()).get("retry-after") == retry_after


async def test_a_replica_lost_in_the_middle_ends_the_stream_with_unavailable(
    stub: pb_grpc.GenerateServiceStub, replica: FakeReplica
) -> None:
    replica.break_after = 2
    stream = stub.GenerateStream(make_request())
    assert (await stream.read()).choices
    assert (await stream.read()).choices
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() == CODE.UNAVAILABLE


@pytest.mark.parametrize("hold_after", [0, 2], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_cancelling_a_call_stops_the_work(
    stub: pb_grpc.GenerateServiceStub, replica: FakeReplica, method: str, hold_after: int
) -> None:
    replica.hold_after = hold_after
    calling = getattr(stub, method)(make_request())
    if method == "GenerateStream" and hold_after:
        await calling.read()
    await replica.wait(num_submits=1)
    calling.cancel()
    await replica.wait(num_aborted=1)


@pytest.mark.parametrize("hold_after", [0, 2], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_deadline_stops_the_work(
    stub: pb_grpc.GenerateServiceStub, replica: FakeReplica, method: str, hold_after: int
) -> None:
    replica.hold_after = hold_after
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stub, method, make_request(), timeout_s=0.3)
    assert caught.value.code() == CODE.DEADLINE_EXCEEDED
    await replica.wait(num_aborted=1)


async def collect(stream: grpc.aio.UnaryStreamCall) -> list[pb.GenerateChunk]:
    return [chunk async for chunk in stream]


async def test_model_info(stub: pb_grpc.GenerateServiceStub) -> None:
    assert await stub.GetModelInfo(pb.GetModelInfoRequest()) == pb.GetModelInfoResponse(
        model="fake",
        max_model_len=64,
        vocab_size=256,
        tensor_parallel_size=2,
        numerics="exact",
        numerics_fingerprint="replica-1-numerics",
        version=__version__,
        num_replicas=1,
        default_sampling=pb.SamplingParams(),
    )


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_the_router(
    channel: grpc.aio.Channel, links: FakeLinks, service: str
) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    status = health_pb2.HealthCheckResponse
    async with asyncio.timeout(10):
        assert (await watch.read()).status == status.SERVING
        links.ready.clear()
        assert (await watch.read()).status == status.NOT_SERVING
        links.add(FakeReplica())
        assert (await watch.read()).status == status.SERVING
    watch.cancel()


async def test_health_of_a_stranger_is_not_found(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() == CODE.NOT_FOUND


async def list_services(port: int) -> list[str]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asking = stub.ServerReflectionInfo()
        await asking.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await asking.read()
        await asking.done_writing()
        return [service.name for service in answer.list_services_response.service]


async def test_reflection_lists_what_is_served(server: GrpcServer) -> None:
    assert {SERVICE, "grpc.health.v1.Health"} <= set(await list_services(server.port))


async def test_reflection_can_be_left_out(router: Router) -> None:
    server = await GrpcServer.start(router, host="127.0.0.1", port=0, reflect=False)
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await list_services(server.port)
        assert caught.value.code() == CODE.UNIMPLEMENTED
    finally:
        await server.stop(0)


async def test_a_port_in_use_is_named(router: Router) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ResourcesError) as caught:
            await GrpcServer.start(router, host="127.0.0.1", port=port)
    assert (caught.value.field, caught.value.value) == ("grpc_port", port)


async def test_two_routers_share_a_port_and_one_may_leave(router: Router) -> None:
    first = await GrpcServer.start(router, host="127.0.0.1", port=0)
    second = await GrpcServer.start(router, host="127.0.0.1", port=first.port)
    assert first.port == second.port
    await first.stop(0)
    assert (first.running, second.running) == (False, True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{second.port}") as channel:
        assert (await pb_grpc.GenerateServiceStub(channel).Generate(make_request())).choices
    await second.stop(0)


async def test_stopping_lets_calls_end_and_takes_no_new_ones(
    router: Router, replica: FakeReplica
) -> None:
    server = await GrpcServer.start(router, host="127.0.0.1", port=0)
    replica.hold_after = 2
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream = pb_grpc.GenerateServiceStub(channel).GenerateStream(make_request())
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        serving, first = await watch.read(), await stream.read()
        stopping = asyncio.create_task(server.stop(30))
        not_serving = await watch.read()
        watch.cancel()
        replica.released.set()
        rest = [await stream.read() for _ in range(4)]
        async with asyncio.timeout(10):
            await stopping
    status = health_pb2.HealthCheckResponse
    assert (serving.status, not_serving.status) == (status.SERVING, status.NOT_SERVING)
    assert first.choices
    assert rest[-1].choices[0].finish_reason == "length"
    assert not server.running
