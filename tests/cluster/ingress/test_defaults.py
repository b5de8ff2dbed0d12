"""A checkpoint's sampling defaults: used, told, logged, and left out if asked."""

import logging

import httpx
import pytest

from cluster.config import DeployConfig
from cluster.ingress.grpc_api import GrpcServer
from cluster.ingress.server import load_model_files
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import generate_pb2 as pb
from protos.v1 import generate_pb2_grpc as pb_grpc
from qwen3_ray.model.generation_config import SamplingDefaults
from tests.cluster.ingress.rig import BODY, URL

DEFAULTS: SamplingDefaults = {"temperature": 0.25, "min_p": 0.125, "top_k": 20}


@pytest.fixture
def router(links: FakeLinks) -> Router:
    return Router(
        links,
        model="fake",
        tokenizer=FakeTokenizer(),
        default_sampling=DEFAULTS,
        hold_s=0.2,
    )


async def test_they_are_told(
    http: httpx.AsyncClient, stub: pb_grpc.GenerateServiceStub, server: GrpcServer
) -> None:
    assert server.running
    (model,) = (await http.get("/v1/models")).json()["data"]
    assert model["default_sampling"] == DEFAULTS
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.default_sampling == pb.SamplingParams(**DEFAULTS)


async def test_they_are_for_what_a_request_leaves_open(
    http: httpx.AsyncClient, stub: pb_grpc.GenerateServiceStub, replica: FakeReplica
) -> None:
    await http.post(URL, json={**BODY, "min_p": 0})
    sampling = pb.SamplingParams(max_tokens=5, seed=3, min_p=0)
    await stub.Generate(pb.GenerateRequest(prompt="hello", sampling=sampling))
    for submit in replica.submits:
        sampled = submit.sampling
        assert (sampled.temperature, sampled.min_p, sampled.top_k) == (0.25, 0.0, 20)


def test_the_demo_model_brings_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer, defaults = load_model_files(DeployConfig())
    assert tokenizer is not None
    assert defaults == {"temperature": 0.8, "top_p": 0.95}
    assert "temperature = 0.8, top_p = 0.95" in caplog.text


def test_openais_can_be_had_instead(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, defaults = load_model_files(DeployConfig(generation_config="none"))
    assert defaults == {}
    assert caplog.text == ""
