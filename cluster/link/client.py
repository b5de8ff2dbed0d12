"""The router's end of a link: one gRPC stream to one replica, shared by many token streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from cluster.link.link_stream import LinkStream
from cluster.link.protocol import (
    CHANNEL_OPTIONS,
    FRAME_BUDGET_BYTES,
    LINK_VERSION,
    SILENCE_LIMIT_S,
    TOKEN_KEY,
)
from protos.v1.link_pb2 import Attach, Hello, Load, ReplicaFrame, RouterFrame, Submit
from protos.v1.link_pb2_grpc import LinkServiceStub
from qwen3_ray.errors import UnavailableError

__all__ = ["LinkClient", "LinkStream"]

SILENCE_CHECKS = 10
"""Checks within a silence limit. A stall of our own event loop costs one, whatever its length."""


class LinkClient:
    """A link to the front at `address` ("host:port"). Use it on one event loop.

    One life only: a broken client stays broken (`Links` makes a new one).
    """

    def __init__(
        self, address: str, token: str, *, silence_limit_s: float = SILENCE_LIMIT_S
    ) -> None:
        self.address = address
        self._token = token
        self._silence_limit_s = silence_limit_s
        self._hello = Hello()
        self._load = Load()
        self._connected = False
        self._closed = asyncio.Event()
        self._heard = True
        self._streams: dict[str, LinkStream] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._submits: list[Submit] = []
        self._aborts: list[str] = []
        self._attaches: list[Attach] = []
        self._outgoing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._channel: grpc.aio.Channel | None = None

    async def connect(self) -> Hello:
        """Dial and wait for the front's `Hello`.

        Raises:
            UnavailableError: nobody answers within the silence limit, the token is wrong, or
                the peer speaks another protocol version.
        """
        self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        call = LinkServiceStub(self._channel).Connect(metadata=((TOKEN_KEY, self._token),))
        try:
            async with asyncio.timeout(self._silence_limit_s):
                self._greet(await call.read())
        except BaseException as error:
            await self.close()
            if isinstance(error, grpc.aio.AioRpcError):
                raise self._broken(error.details() or str(error.code())) from error
            if isinstance(error, TimeoutError):
                raise self._broken("no answer") from error
            raise
        self._connected = True
        self._tasks = [
            asyncio.create_task(self._read(call)),
            asyncio.create_task(self._write(call)),
            asyncio.create_task(self._watch()),
        ]
        return self._hello

    @property
    def hello(self) -> Hello:
        """What the replica said about itself; empty before `connect`."""
        return self._hello

    @property
    def connected(self) -> bool:
        """Between a successful `connect` and the first sign of a broken link."""
        return self._connected

    @property
    def load(self) -> Load:
        """Last known load of the replica (at most 1 s old while connected)."""
        return self._load

    @property
    def num_streams(self) -> int:
        """Streams opened here and not ended."""
        return len(self._streams)

    def open(self, submit: Submit) -> LinkStream:
        """Submit a request; it leaves with the next frame.

        Raises:
            UnavailableError: not connected.
            ValueError: a stream with this request id is open here.
        """
        stream = self._new_stream(submit.request_id)
        self._submits.append(submit)
        self._outgoing.set()
        return stream

    def attach(self, request_id: str, from_index: int, num_prompt_logprobs: int = 0) -> LinkStream:
        """Take over a stream of the replica, of which so much is known already.

        It goes on from output token `from_index`, and after that many of the prompt's logprobs.

        Raises:
            UnavailableError: not connected.
            ValueError: a stream with this request id is open here.
        """
        stream = self._new_stream(request_id)
        attach = Attach(
            request_id=request_id, from_index=from_index, num_prompt_logprobs=num_prompt_logprobs
        )
        self._attaches.append(attach)
        self._outgoing.set()
        return stream

    async def wait_closed(self) -> None:
        """Return once the link is broken or closed."""
        await self._closed.wait()

    async def wait_idle(self) -> None:
        """Return once no stream is open (a broken link has none)."""
        await self._idle.wait()

    async def close(self) -> None:
        """Hang up. Unfinished streams raise `UnavailableError`; the replica keeps them a while."""
        self._break("closed")
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    def _greet(self, frame: ReplicaFrame) -> None:
        if not isinstance(frame, ReplicaFrame) or not frame.HasField("hello"):
            raise self._broken("it did not say hello")
        if frame.hello.protocol_version != LINK_VERSION:
            version = frame.hello.protocol_version
            raise self._broken(f"it speaks link version {version}, this router {LINK_VERSION}")
        self._hello = frame.hello
        self._load = frame.load

    def _new_stream(self, request_id: str) -> LinkStream:
        if not self._connected:
            raise self._broken("not connected")
        if request_id in self._streams:
            raise ValueError(f"stream {request_id!r} is open already")
        stream = LinkStream(request_id, self._forget)
        self._streams[request_id] = stream
        self._idle.clear()
        return stream

    def _forget(self, request_id: str, abort: bool) -> None:
        """Drop an ended stream; `abort` also stops the replica's work on it."""
        self._streams.pop(request_id, None)
        if not self._streams:
            self._idle.set()
        if abort and self._connected:
            self._aborts.append(request_id)
            self._outgoing.set()

    def _receive(self, frame: ReplicaFrame) -> None:
        self._heard = True
        self._load = frame.load
        # Rejects first: whoever reads several answers to one prompt learns that one of them was
        # refused before the first token of another.
        for reject in frame.rejects:
            if (stream := self._streams.get(reject.request_id)) is not None:
                stream.reject(reject)
        for delta in frame.deltas:
            if (stream := self._streams.get(delta.request_id)) is not None:
                stream.push(delta)

    def _next_frame(self) -> RouterFrame:
        """Everything queued, but no submit beyond the frame's budget."""
        frame = RouterFrame(abort=self._aborts, attach=self._attaches)
        self._aborts, self._attaches = [], []
        count = _num_within(self._submits, FRAME_BUDGET_BYTES)
        frame.submit.extend(self._submits[:count])
        del self._submits[:count]
        if not self._submits:
            self._outgoing.clear()
        return frame

    async def _read(self, call: grpc.aio.StreamStreamCall[RouterFrame, ReplicaFrame]) -> None:
        try:
            while isinstance(frame := await call.read(), ReplicaFrame):
                self._receive(frame)
            self._break("hung up")
        except grpc.aio.AioRpcError as error:
            self._break(error.details() or str(error.code()))

    async def _write(self, call: grpc.aio.StreamStreamCall[RouterFrame, ReplicaFrame]) -> None:
        try:
            while True:
                await self._outgoing.wait()
                await call.write(self._next_frame())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self._break(f"cannot be written to: {type(error).__name__}")

    async def _watch(self) -> None:
        num_silent = 0
        while num_silent < SILENCE_CHECKS:
            await asyncio.sleep(self._silence_limit_s / SILENCE_CHECKS)
            num_silent = 0 if self._heard else num_silent + 1
            self._heard = False
        self._break(f"silent for {self._silence_limit_s:g} s")

    def _break(self, problem: str) -> None:
        """Fail every open stream, once; nothing arrives or leaves any more."""
        if self._closed.is_set():
            return
        self._connected = False
        self._closed.set()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for stream in list(self._streams.values()):
            stream.fail(self._broken(problem))

    def _broken(self, problem: str) -> UnavailableError:
        return UnavailableError(f"link to the replica at {self.address}: {problem}")


def _num_within(submits: Sequence[Submit], budget_bytes: int) -> int:
    """How many of the first submits go into one frame: until the budget is used up."""
    size = 0
    for count, submit in enumerate(submits):
        if size >= budget_bytes:
            return count
        size += submit.ByteSize()
    return len(submits)
