"""The router's end of a link: one gRPC stream to one replica, shared by many token streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cluster.link.protocol import SILENCE_LIMIT_S
from protos.v1.link_pb2 import Hello, Load, StreamDelta, Submit


class LinkStream(AsyncIterator[StreamDelta]):
    """Deltas of one request over a link, in order; ends after the delta with a finish reason.

    The last delta's `finish_reason` is STOP or LENGTH; every other end is raised, by the first
    `__anext__` after what had arrived before it.

    Raises:
        OverloadedError: the replica has no room (nothing was computed); try another one.
        RequestError: the replica refuses the request as it is.
        UnavailableError: the link broke, the replica drains, lost its engine, or does not know
            the stream to attach to. `Attach` here, or a resume elsewhere, can go on.
        RequestAbortedError: the request was aborted.
        EngineError: the engine failed on this request.
    """

    request_id: str

    async def __anext__(self) -> StreamDelta:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Abort what is unfinished (queued for the next frame, never waits); idempotent."""
        raise NotImplementedError


class LinkClient:
    """A link to the front at `address` ("host:port"). Use it on one event loop.

    One life only: a broken client stays broken (`Links` makes a new one).
    """

    def __init__(
        self, address: str, token: str, *, silence_limit_s: float = SILENCE_LIMIT_S
    ) -> None:
        raise NotImplementedError

    async def connect(self) -> Hello:
        """Dial and wait for the front's `Hello`.

        Raises:
            UnavailableError: nobody answers within the silence limit, the token is wrong, or
                the peer speaks another protocol version.
        """
        raise NotImplementedError

    @property
    def hello(self) -> Hello:
        """What the replica said about itself; only after `connect`."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """Between a successful `connect` and the first sign of a broken link."""
        raise NotImplementedError

    @property
    def load(self) -> Load:
        """Last known load of the replica (at most 1 s old while connected)."""
        raise NotImplementedError

    @property
    def num_streams(self) -> int:
        """Streams opened here and not ended."""
        raise NotImplementedError

    def open(self, submit: Submit) -> LinkStream:
        """Submit a request; it leaves with the next frame.

        Raises:
            UnavailableError: not connected.
        """
        raise NotImplementedError

    def attach(self, request_id: str, from_index: int) -> LinkStream:
        """Take over a stream of the replica from output token `from_index` on.

        Raises:
            UnavailableError: not connected.
        """
        raise NotImplementedError

    async def wait_closed(self) -> None:
        """Return once the link is broken or closed."""
        raise NotImplementedError

    async def close(self) -> None:
        """Hang up. Unfinished streams raise `UnavailableError`; the replica keeps them a while."""
        raise NotImplementedError
