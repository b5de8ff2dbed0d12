"""A router over fake replicas, and both skins over that router."""

from collections.abc import AsyncIterator

import grpc
import httpx
import pytest

from cluster.ingress.grpc_api import GrpcServer
from cluster.ingress.http_api import create_app
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import generate_pb2_grpc as pb_grpc


@pytest.fixture
def replica() -> FakeReplica:
    return FakeReplica()


@pytest.fixture
def links(replica: FakeReplica) -> FakeLinks:
    return FakeLinks(replica)


@pytest.fixture
def router(links: FakeLinks) -> Router:
    return Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=0.2)


@pytest.fixture
async def http(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(router), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://fake") as client:
        yield client


@pytest.fixture
async def server(router: Router) -> AsyncIterator[GrpcServer]:
    server = await GrpcServer.start(router, host="127.0.0.1", port=0)
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> pb_grpc.GenerateServiceStub:
    return pb_grpc.GenerateServiceStub(channel)
