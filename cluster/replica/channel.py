"""Frames between a front and its rank 0: a length, then a protobuf message, on a Unix socket.

The front's end is asyncio. Rank 0's end is plain blocking calls and one thread that writes, so
that the step thread never waits for a slow socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from protos.v1.link_pb2 import EngineCommand, EngineEvent
from qwen3_ray.errors import ConfigError, EngineError

MAX_FRAME_BYTES = 64 << 20
"""Twice the largest frame of a link, whose submits a command passes on."""
_LENGTH = struct.Struct(">I")
_CHUNK_BYTES = 1 << 18
_MAX_PATH_BYTES = 100  # the kernel's limit for a socket's path is 108
_CLOSE_TIMEOUT_S = 2.0

_MessageT = TypeVar("_MessageT", EngineCommand, EngineEvent)


def encode(message: EngineCommand | EngineEvent) -> bytes:
    """A message as one frame.

    Raises:
        EngineError: it is larger than a frame may be.
    """
    payload = message.SerializeToString()
    if len(payload) > MAX_FRAME_BYTES:
        raise EngineError(f"a frame of {len(payload)} bytes is larger than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class FrameDecoder:
    """Cuts a stream of bytes into the payloads of its frames, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that `data` completes.

        Raises:
            EngineError: a length beyond the bound: this is not our peer, or bytes were lost.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise EngineError(f"broken frame: a length of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload

    def finish(self) -> None:
        """The peer has hung up.

        Raises:
            EngineError: in the middle of a frame.
        """
        if self._buffer:
            raise EngineError(f"broken frame: the peer hung up after {len(self._buffer)} bytes")


class FrontChannel:
    """The front's end: listens on a socket of its own, for one peer."""

    def __init__(self, path: Path) -> None:
        """`path` must lie in a directory that only this user can enter.

        Raises:
            ConfigError: the path is too long for a socket.
        """
        if len(str(path).encode()) > _MAX_PATH_BYTES:
            raise ConfigError("TMPDIR", str(path), "is too long for a Unix socket")
        self.path = path
        self._server: asyncio.Server | None = None
        self._peer: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self._decoder = FrameDecoder()
        self._payloads: deque[bytes] = deque()

    async def listen(self) -> None:
        """Create the socket; the peer may connect from now on."""
        self._peer = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._peer.done():
            writer.close()
        else:
            self._peer.set_result((reader, writer))

    async def read(self) -> EngineEvent | None:
        """The peer's next event, waiting for the peer first; None when it has hung up.

        Raises:
            EngineError: a broken frame.
        """
        reader, _ = await self._peer
        while not self._payloads:
            data = await reader.read(_CHUNK_BYTES)
            if not data:
                self._decoder.finish()
                return None
            self._payloads.extend(self._decoder.feed(data))
        return _parse(EngineEvent, self._payloads.popleft())

    def send(self, command: EngineCommand) -> None:
        """Queue a command; never waits. Only once the peer has connected."""
        _, writer = self._peer.result()
        if not writer.is_closing():
            writer.write(encode(command))

    async def close(self) -> None:
        """Hang up, and remove the socket; idempotent."""
        if self._server is None:
            return
        self._server.close()
        if self._peer.done() and not self._peer.cancelled():
            self._peer.result()[1].close()
        self._peer.cancel()
        self.path.unlink(missing_ok=True)
        self._server = None


class RankChannel:
    """Rank 0's end. `read` belongs to one thread; `send` is for any."""

    def __init__(self, path: Path) -> None:
        """Connect.

        Raises:
            EngineError: the front does not listen there.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise EngineError(f"the front does not listen at {path}: {error}") from error
        self._decoder = FrameDecoder()
        self._outgoing: queue.SimpleQueue[Callable[[], EngineEvent] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="front-writer", daemon=True)
        self._writer.start()

    def send(self, make_event: Callable[[], EngineEvent]) -> None:
        """Queue an event, made in the writing thread; never waits.

        It is lost when the front is gone, which `read` tells.
        """
        self._outgoing.put(make_event)

    def read(self, timeout_s: float) -> list[EngineCommand] | None:
        """The commands that arrive within `timeout_s`, maybe none; None: the front hung up.

        Raises:
            EngineError: a broken frame.
        """
        readable, _, _ = select.select([self._socket], [], [], timeout_s)
        if not readable:
            return []
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            return None
        return [_parse(EngineCommand, payload) for payload in self._decoder.feed(data)]

    def close(self) -> None:
        """Send what is queued (for a short time at most), then hang up."""
        self._outgoing.put(None)
        self._writer.join(_CLOSE_TIMEOUT_S)
        self._socket.close()

    def _write(self) -> None:
        try:
            while (make_event := self._outgoing.get()) is not None:
                self._socket.sendall(encode(make_event()))
        except (OSError, EngineError):  # nothing can be said any more: end the reading side too
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _parse(kind: type[_MessageT], payload: bytes) -> _MessageT:
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise EngineError(f"broken frame: {error}") from error
