"""The streams of the answers to one prompt, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from protos.v1 import link_pb2 as link


class DeltaStream(Protocol):
    """Deltas of one stream, as `cluster.link.client.LinkStream` gives them."""

    async def __anext__(self) -> link.StreamDelta: ...
    async def aclose(self) -> None: ...


class ChoiceStreams(AsyncIterator[tuple[int, link.StreamDelta]]):
    """Deltas of several streams in the order in which they come, each with its stream's number.

    Raises the first error of any stream, after what came before it; ends when all have ended.
    """

    def __init__(self, streams: Sequence[DeltaStream]) -> None:
        self._streams = streams
        self._num_open = len(streams)
        self._arrived: asyncio.Queue[tuple[int, link.StreamDelta | Exception]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        if len(streams) > 1:  # one alone is read where it is wanted
            self._tasks = [
                asyncio.create_task(self._read(choice)) for choice in range(len(streams))
            ]

    async def __anext__(self) -> tuple[int, link.StreamDelta]:
        if not self._tasks:
            return 0, await self._streams[0].__anext__()
        while self._num_open:
            choice, arrived = await self._arrived.get()
            if isinstance(arrived, StopAsyncIteration):
                self._num_open -= 1
            elif isinstance(arrived, Exception):
                raise arrived
            else:
                return choice, arrived
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort what is unfinished; idempotent."""
        for stream in self._streams:
            await stream.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, choice: int) -> None:
        try:
            while True:
                self._arrived.put_nowait((choice, await self._streams[choice].__anext__()))
        except Exception as end:
            self._arrived.put_nowait((choice, end))
