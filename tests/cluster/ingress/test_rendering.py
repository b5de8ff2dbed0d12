"""Much to write is written off the event loop, and comes out the same."""

import threading

import httpx
import pytest
from starlette.responses import JSONResponse

from cluster.ingress import completion_response
from cluster.ingress.grpc_api import GrpcServer
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import generate_pb2 as pb
from protos.v1 import generate_pb2_grpc as pb_grpc
from tests.cluster.ingress.rig import BODY, URL, events_of


class Spy(FakeTokenizer):
    """Knows in which threads tokens were written."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def token_bytes(self, token_id: int) -> bytes:
        self.threads.add(threading.get_ident())
        return super().token_bytes(token_id)


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def router(spy: Spy) -> Router:
    return Router(FakeLinks(FakeReplica(max_model_len=1_000)), model="fake", tokenizer=spy)


@pytest.mark.parametrize(("num_tokens", "is_large"), [(20, False), (500, True)])
async def test_a_long_prompt_is_scored_in_a_thread(
    http: httpx.AsyncClient,
    stub: pb_grpc.GenerateServiceStub,
    server: GrpcServer,
    spy: Spy,
    num_tokens: int,
    is_large: bool,
) -> None:
    assert server.running
    prompt = "x" * num_tokens
    body = {**BODY, "prompt": prompt, "echo": True, "logprobs": 1}
    (choice,) = (await http.post(URL, json=body)).json()["choices"]
    assert bool(spy.threads - {threading.get_ident()}) == is_large
    assert choice["logprobs"]["tokens"] == list(choice["text"])
    assert len(choice["text"]) == num_tokens + 5

    spy.threads.clear()
    first, *_ = events_of(await http.post(URL, json={**body, "stream": True}))
    assert bool(spy.threads - {threading.get_ident()}) == is_large
    assert len(first["choices"][0]["logprobs"]["tokens"]) == num_tokens + 1

    spy.threads.clear()
    sampling = pb.SamplingParams(seed=3, max_tokens=5, echo=True, logprobs=1)
    answer = await stub.Generate(pb.GenerateRequest(prompt=prompt, sampling=sampling))
    assert bool(spy.threads - {threading.get_ident()}) == is_large
    assert answer.choices[0].text == choice["text"]
    assert len(answer.choices[0].prompt_logprobs) == num_tokens - 1


@pytest.mark.parametrize("logprobs", [None, 1])
async def test_an_answer_with_logprobs_becomes_json_in_a_thread(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, logprobs: int | None
) -> None:
    threads: set[int] = set()

    class SpyResponse(JSONResponse):
        def render(self, content: object) -> bytes:
            threads.add(threading.get_ident())
            return super().render(content)

    monkeypatch.setattr(completion_response, "JSONResponse", SpyResponse)
    await http.post(URL, json={**BODY, "logprobs": logprobs})
    assert (threads == {threading.get_ident()}) == (logprobs is None)
