"""The replica's end of the links: a gRPC server that carries a stream host's frames."""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from cluster.link.protocol import (
    BUSY_HEARTBEAT_S,
    IDLE_HEARTBEAT_S,
    SERVER_OPTIONS,
    TOKEN_KEY,
)
from protos.v1.link_pb2 import Hello, ReplicaFrame, RouterFrame
from protos.v1.link_pb2_grpc import LinkServiceServicer, add_LinkServiceServicer_to_server

STOP_GRACE_S = 0.5


class StreamHost(Protocol):
    """What a link server needs from the replica behind it. Connections are numbered.

    No method waits or raises; all are called on the server's event loop.
    """

    def hello(self) -> Hello:
        """What a router is told first."""

    def receive(self, connection: int, frame: RouterFrame) -> None:
        """A router's submits, aborts and attaches."""

    def has_news(self, connection: int) -> bool:
        """Whether the next frame would hold deltas or rejects."""

    def is_busy(self, connection: int) -> bool:
        """Whether the connection has streams in flight."""

    def next_frame(self, connection: int) -> ReplicaFrame:
        """What is new since the last call, as much as a frame holds, and the load."""

    def disconnect(self, connection: int) -> None:
        """The router is gone; its streams are orphans now."""


class LinkServer(LinkServiceServicer):
    """Serves `host` to routers that know the token, on a free port of one address."""

    def __init__(self, host: StreamHost, token: str) -> None:
        self._host = host
        self._token = token.encode()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._ids = itertools.count(1)
        self._wake: dict[int, asyncio.Event] = {}
        self._address = ""

    @classmethod
    async def start(cls, host: StreamHost, token: str, *, ip_address: str) -> LinkServer:
        """Listen on a free port of `ip_address`."""
        server = cls(host, token)
        add_LinkServiceServicer_to_server(server, server._server)
        name = f"[{ip_address}]" if ":" in ip_address else ip_address
        port = server._server.add_insecure_port(f"{name}:0")
        await server._server.start()
        server._address = f"{name}:{port}"
        return server

    @property
    def address(self) -> str:
        """Where routers dial: "host:port"."""
        return self._address

    def notify(self) -> None:
        """Send a frame now to every router for which the host has news."""
        for connection, wake in self._wake.items():
            if self._host.has_news(connection):
                wake.set()

    async def stop(self) -> None:
        """Take no more links; routers get a moment to read what was sent; idempotent."""
        await self._server.stop(STOP_GRACE_S)

    async def Connect(  # noqa: N802
        self,
        request_iterator: AsyncIterator[RouterFrame],
        context: grpc.aio.ServicerContext[RouterFrame, ReplicaFrame],
    ) -> None:
        """One router's link, for as long as it lasts."""
        await self._authenticate(context)
        connection = next(self._ids)
        self._wake[connection] = asyncio.Event()
        writer = asyncio.create_task(self._write(connection, context))
        reader = asyncio.create_task(self._read(connection, request_iterator))
        try:
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            reader.cancel()
            writer.cancel()
            del self._wake[connection]
            self._host.disconnect(connection)

    async def _authenticate(
        self, context: grpc.aio.ServicerContext[RouterFrame, ReplicaFrame]
    ) -> None:
        for key, value in context.invocation_metadata() or ():
            given = value.encode() if isinstance(value, str) else value
            if key == TOKEN_KEY and hmac.compare_digest(given, self._token):
                return
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong or missing link token")

    async def _read(self, connection: int, frames: AsyncIterator[RouterFrame]) -> None:
        async for frame in frames:
            self._host.receive(connection, frame)
            self._wake[connection].set()

    async def _write(
        self,
        connection: int,
        context: grpc.aio.ServicerContext[RouterFrame, ReplicaFrame],
    ) -> None:
        first = self._host.next_frame(connection)
        first.hello.CopyFrom(self._host.hello())
        await context.write(first)
        while True:
            await self._wait_for_turn(connection)
            await context.write(self._host.next_frame(connection))

    async def _wait_for_turn(self, connection: int) -> None:
        """Until there is news, or a heartbeat is due."""
        wake = self._wake[connection]
        if self._host.has_news(connection):  # more than the last frame could hold
            wake.clear()
            return
        limit_s = BUSY_HEARTBEAT_S if self._host.is_busy(connection) else IDLE_HEARTBEAT_S
        try:
            async with asyncio.timeout(limit_s):
                await wake.wait()
        except TimeoutError:
            return
        wake.clear()
