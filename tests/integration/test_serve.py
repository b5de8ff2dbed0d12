"""The whole system: `qwen3-ray serve` on the demo model, used the way its users do.

The tests of one server run in order; the one that stops it comes last.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from protos.v1.generate_pb2 import GenerateRequest, GetModelInfoRequest, TokenIds
from protos.v1.generate_pb2 import SamplingParams as WireParams
from protos.v1.generate_pb2_grpc import GenerateServiceStub
from tests.integration.clients import Call, grpc_pieces, http_pieces, text_of
from tests.integration.server import Server, eventually, running_server

DARCY = Call("Mr. Darcy looked at her and", max_tokens=24)
SUBJECTS = ("Elizabeth", "Mr. Bennet", "The king", "My dear sister", "Emma", "Captain Wentworth")
VERBS = ("walked to the", "spoke unto them and said", "was not at all", "had never been so")


def test_it_says_ready_with_both_addresses_within_a_minute(server: Server) -> None:
    assert server.stdout.lines == [
        f"Ready: http://127.0.0.1:{server.http_port} (HTTP)  127.0.0.1:{server.grpc_port} (gRPC)  "
        "model demo, 1 to 2 replicas x TP 2"
    ]
    assert server.start_s <= 60, f"took {server.start_s:.1f} s"
    told = "\n".join(server.stderr.lines)
    for line in ("Starting Ray", "Ranks started: 2 of 2", "Weights loaded: 100 %", "Warmed up: 2"):
        assert line in told


def test_the_whole_cluster_fits_into_three_gigabytes(
    server: Server, record_property: pytest.RecordProperty
) -> None:
    pss_bytes = server.pss_bytes()
    record_property("pss_bytes", pss_bytes)
    record_property("start_s", round(server.start_s, 1))
    assert len(server.processes("ray::RankWorker")) == 2
    assert 500e6 < pss_bytes <= 3e9


async def test_http_and_grpc_stream_the_same_text(
    server: Server, stub: GenerateServiceStub
) -> None:
    over_http = [piece async for piece in http_pieces(server.url, DARCY)]
    over_grpc = [piece async for piece in grpc_pieces(server.target, DARCY)]
    assert len(over_http) > 5
    assert len(over_grpc) > 5
    text = "".join(over_http)
    assert text.startswith(' said, "I am sure you will be very much')
    assert "".join(over_grpc) == text

    whole = server.post(DARCY.body(stream=False)).json()
    assert whole["choices"][0]["text"] == text
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 24
    response = stub.Generate(DARCY.message(), timeout=60)
    assert response.choices[0].text == text
    assert response.usage.completion_tokens == 24
    assert response.system_fingerprint == whole["system_fingerprint"] != ""


def test_it_tells_what_it_is(server: Server, stub: GenerateServiceStub) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    version = httpx.get(f"{server.url}/version").json()["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version)
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("demo", 4096)
    info = stub.GetModelInfo(GetModelInfoRequest(), timeout=10)
    assert (info.model, info.version, info.tensor_parallel_size) == ("demo", version, 2)
    assert (info.numerics, info.num_replicas) == ("exact", 1)
    with grpc.insecure_channel(server.target) as channel:
        for service in ("", "qwen3_ray.v1.GenerateService"):
            health = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)
            assert health.status == HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        (b'{"prompt": "a', 400, "JSON"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "NaN"),
        ({"prompt": "a", "temperature": "hot"}, 400, "temperature"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"prompt": [1] * 5000}, 400, "4096"),
        ({"prompt": [4096]}, 400, "4096"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "a", "model": "no-such"}, 404, "no-such"),
        ({}, 400, "prompt"),
    ],
)
def test_bad_http_input_is_refused_by_name(
    server: Server, body: object, status: int, names: str
) -> None:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = httpx.post(f"{server.url}/v1/completions", timeout=30, **content)
    assert answer.status_code == status, answer.text
    assert names in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("request_", "code", "names"),
    [
        (GenerateRequest(), "INVALID_ARGUMENT", "prompt"),
        (GenerateRequest(prompt=""), "INVALID_ARGUMENT", "prompt"),
        (
            GenerateRequest(prompt="a", sampling=WireParams(temperature=float("nan"))),
            "INVALID_ARGUMENT",
            "temperature",
        ),
        (
            GenerateRequest(prompt="a", sampling=WireParams(max_tokens=-1)),
            "INVALID_ARGUMENT",
            "max_tokens",
        ),
        (
            GenerateRequest(prompt_token_ids=TokenIds(ids=[4096])),
            "INVALID_ARGUMENT",
            "4096",
        ),
        (GenerateRequest(prompt="a", model="no-such"), "NOT_FOUND", "no-such"),
    ],
)
def test_bad_grpc_input_is_refused_by_name(
    stub: GenerateServiceStub, request_: GenerateRequest, code: str, names: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(request_, timeout=30)
    assert caught.value.code().name == code
    assert names in caught.value.details()


def test_it_still_serves_after_bad_input(server: Server) -> None:
    assert server.post(DARCY.body(stream=False)).status_code == 200


async def test_64_streams_at_once_get_the_text_they_get_alone(
    server: Server, stub: GenerateServiceStub
) -> None:
    calls = [
        Call(
            f"{SUBJECTS[i % len(SUBJECTS)]} {VERBS[i % len(VERBS)]} {'and again ' * (i % 7)}",
            max_tokens=16,
            seed=None if i % 2 else 1000 + i,
        )
        for i in range(64)
    ]
    alone = [stub.Generate(call.message(), timeout=60).choices[0].text for call in calls]
    together = await asyncio.gather(
        *(
            text_of(
                http_pieces(server.url, call) if i % 4 < 2 else grpc_pieces(server.target, call)
            )
            for i, call in enumerate(calls)
        )
    )
    assert together == alone
    assert len(set(alone)) > 32


ENDLESS = Call(tuple(range(100, 110)), max_tokens=4000, ignore_eos=True)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(lambda server: http_pieces(server.url, ENDLESS), id="http"),
        pytest.param(lambda server: grpc_pieces(server.target, ENDLESS), id="grpc"),
    ],
)
async def test_streams_that_clients_leave_stop_working(
    server: Server, pieces: Callable[[Server], AsyncIterator[str]]
) -> None:
    rank = server.processes("ray::RankWorker")[0]

    async def works() -> bool:
        """Whether the rank computes now: at rest it takes a few milliseconds of a second."""
        before = rank.cpu_times()
        await asyncio.sleep(0.4)
        after = rank.cpu_times()
        return (after.user + after.system) - (before.user + before.system) > 0.05

    async def read(arrived: asyncio.Event) -> None:
        async for _ in pieces(server):
            arrived.set()

    arrivals = [asyncio.Event() for _ in range(8)]
    clients = [asyncio.create_task(read(arrived)) for arrived in arrivals]
    await asyncio.gather(*(arrived.wait() for arrived in arrivals))
    assert await works()
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)
    async with asyncio.timeout(10):
        while await works():
            pass


async def test_a_burst_takes_one_replica_to_two_and_back(server: Server) -> None:
    assert server.num_replicas() == 1
    long_prompts = [Call((i + 1,) * 2000, max_tokens=1) for i in range(100)]
    burst = [
        asyncio.create_task(text_of(grpc_pieces(server.target, call))) for call in long_prompts
    ]
    await asyncio.to_thread(
        eventually, lambda: server.num_replicas() == 2, limit_s=60, what="two replicas"
    )
    for request in burst:
        request.cancel()
    ends = await asyncio.gather(*burst, return_exceptions=True)
    assert any(isinstance(end, str) for end in ends)
    assert all(isinstance(end, str | asyncio.CancelledError) for end in ends)
    await asyncio.to_thread(
        eventually, lambda: server.num_replicas() == 1, limit_s=30, what="one replica"
    )
    answer = await asyncio.to_thread(server.post, DARCY.body(stream=False))
    assert answer.status_code == 200


async def test_sigterm_lets_streams_end_and_leaves_nothing_behind(server: Server) -> None:
    call = Call("Emma said to him", max_tokens=150, ignore_eos=True)
    expected = await text_of(grpc_pieces(server.target, call))
    tree = server.processes()
    streams = (http_pieces(server.url, call), grpc_pieces(server.target, call))
    begun = await asyncio.gather(*map(anext, streams))
    exit_code = asyncio.create_task(asyncio.to_thread(server.stop))
    rest = await asyncio.gather(*map(text_of, streams))
    assert [first + more for first, more in zip(begun, rest, strict=True)] == [expected] * 2
    assert await exit_code == 0
    await asyncio.to_thread(
        eventually,
        lambda: not any(process.is_running() for process in tree),
        limit_s=10,
        what="all processes gone",
    )
    for name in ("t", "home"):
        assert list((server.directory / name).iterdir()) == []
    assert len(server.stdout.lines) == 1


@pytest.mark.fault
async def test_a_killed_replica_leaves_the_other_serving_and_comes_back(
    cache_dir: Path,
) -> None:
    with running_server(cache_dir, "--num-replicas", "2") as server:
        fronts = server.processes("ServeReplica:qwen3-ray:Replica")
        assert len(fronts) == 2
        assert server.num_replicas() == 2
        expected = server.post(DARCY.body(stream=False)).json()["choices"][0]["text"]

        running = [
            asyncio.create_task(text_of(grpc_pieces(server.target, DARCY))) for _ in range(8)
        ]
        fronts[0].kill()
        for _ in range(10):
            answer = await asyncio.to_thread(server.post, DARCY.body(stream=False))
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["text"] == expected
        ends = await asyncio.gather(*running, return_exceptions=True)
        assert any(end == expected for end in ends)
        assert all(end == expected or isinstance(end, grpc.RpcError) for end in ends)

        await asyncio.to_thread(
            eventually, lambda: server.num_replicas() == 2, limit_s=60, what="two replicas again"
        )
        assert len(server.processes("ray::RankWorker")) == 4
        assert fronts[1].is_running()
        assert server.stop() == 0
