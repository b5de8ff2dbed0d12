"""The gRPC skin over a `Router`: `GenerateService`, `grpc.health.v1` and reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.ingress.rendering import render
from cluster.ingress.statuses import message_of, retry_after_s, status_of
from cluster.ingress.wire.grpc_messages import (
    Message,
    inference_request,
    proto_answer,
    proto_model_info,
)
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.router import Router
from protos.v1 import generate_pb2 as pb
from protos.v1 import generate_pb2_grpc as pb_grpc
from qwen3_ray.errors import Qwen3RayError, ResourcesError

SERVICE = "qwen3_ray.v1.GenerateService"
RETRY_AFTER_KEY = "retry-after"
"""Trailing metadata of an error that goes away: seconds to wait before trying again."""

_HEALTH_PERIOD_S = 0.25
_OPTIONS = (
    # Routers of one app share the host's port, and so do the old and the new one in an update.
    ("grpc.so_reuseport", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)

_logger = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[object, object]


class GenerateServicer(pb_grpc.GenerateServiceServicer):
    """Each call is one task, and leaving it stops the work.

    gRPC cancels the task when the client cancels, hangs up, or its deadline passes.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    async def Generate(  # noqa: N802  (the name in the service)
        self, request: pb.GenerateRequest, context: _Context
    ) -> pb.GenerateResponse:
        async with (
            _guard(context),
            self._router.generate(self._read(request)) as generation,
        ):
            chunks = await generation.collect()
            return await self._answer(pb.GenerateResponse, generation, chunks)

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, context: _Context
    ) -> None:
        async with (
            _guard(context),
            self._router.generate(self._read(request)) as generation,
        ):
            async for chunk in generation:
                await context.write(await self._answer(pb.GenerateChunk, generation, [chunk]))

    async def GetModelInfo(  # noqa: N802
        self,
        request: pb.GetModelInfoRequest,  # noqa: ARG002
        context: _Context,  # noqa: ARG002
    ) -> pb.GetModelInfoResponse:
        return proto_model_info(self._router.model_info)

    def _read(self, request: pb.GenerateRequest) -> InferenceRequest:
        return inference_request(request, self._router.default_sampling)

    async def _answer(
        self, kind: type[Message], generation: Generation, chunks: Sequence[Chunk]
    ) -> Message:
        write = partial(proto_answer, kind, generation, chunks, self._router.tokenizer)
        return await render(write, generation, chunks)


@asynccontextmanager
async def _guard(context: _Context) -> AsyncIterator[None]:
    """End the call with the status of the block's error."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, Qwen3RayError):
            _logger.error("a call failed", exc_info=error)
        wait_s = retry_after_s(error)
        trailing = () if wait_s is None else ((RETRY_AFTER_KEY, f"{wait_s:g}"),)
        await context.abort(status_of(error).grpc, message_of(error), trailing)


class GrpcServer:
    """Our own gRPC server in a router's process. Use it on one event loop."""

    def __init__(self, server: grpc.aio.Server, router: Router, port: int) -> None:
        self.port = port
        self._server = server
        self._router = router
        self._health = health.aio.HealthServicer()
        self._following: asyncio.Task[None] | None = None
        self._terminated: asyncio.Task[bool] | None = None

    @classmethod
    async def start(cls, router: Router, *, host: str, port: int, reflect: bool = True) -> Self:
        """Listen on `host` and `port` (0: any free one; see `port`).

        `reflect` offers the reflection service. Another router of this user may hold the port,
        too: whether it is one of ours is for the one who starts the app to find out.

        Raises:
            ResourcesError: the port cannot be had.
        """
        server = grpc.aio.server(options=_OPTIONS)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ResourcesError(
                "grpc_port", port, f"cannot listen on {address}; is the port in use?"
            ) from error
        self = cls(server, router, bound)
        await self._serve(reflect=reflect)
        return self

    async def _serve(self, *, reflect: bool) -> None:
        pb_grpc.add_GenerateServiceServicer_to_server(GenerateServicer(self._router), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflect:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._set_health(serving=self._router.healthy)
        await self._server.start()
        self._following = asyncio.create_task(self._follow_health())
        self._terminated = asyncio.create_task(self._server.wait_for_termination())

    @property
    def running(self) -> bool:
        return self._terminated is not None and not self._terminated.done()

    async def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING, take no new calls, and give those that run `grace_s` to end."""
        if self._following is not None:
            self._following.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _follow_health(self) -> None:
        serving = None
        while True:
            if serving != (serving := self._router.healthy):
                await self._set_health(serving=serving)
            await asyncio.sleep(_HEALTH_PERIOD_S)

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)
