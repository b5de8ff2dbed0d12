"""One answer on its way from a replica to a client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

from cluster.router.inference import Chunk
from cluster.router.journal import JournalEntry
from protos.v1 import link_pb2 as link
from qwen3_ray.request import FinishReason

_FINISH_REASONS = {
    link.UNFINISHED: None,
    link.STOP: FinishReason.STOP,
    link.LENGTH: FinishReason.LENGTH,
}


class DeltaStream(Protocol):
    """Deltas of one stream, as `cluster.link.client.LinkStream` gives them."""

    async def __anext__(self) -> link.StreamDelta: ...
    async def aclose(self) -> None: ...


class Generation(AsyncIterator[Chunk]):
    """One answer while it is made: chunks in order, the last one with a finish reason.

    Raises:
        UnavailableError: the replica is lost; what has arrived stays valid.
        EngineError: the engine failed on this request.
        RequestAbortedError: the replica dropped the request.
    """

    def __init__(
        self,
        entry: JournalEntry,
        stream: DeltaStream,
        first: link.StreamDelta,
        *,
        model: str,
        fingerprint: str,
    ) -> None:
        assert entry.params.seed is not None  # noqa: S101  (the router has drawn it)
        self.id = entry.request_id
        self.created = int(time.time())
        self.seed = entry.params.seed
        self.model = model
        self.prompt_token_ids = entry.prompt_token_ids
        self.fingerprint = fingerprint
        """Numerics fingerprint of the replica that answers."""
        self._entry = entry
        self._stream = stream
        self._first: link.StreamDelta | None = first
        self._finished = False

    async def __anext__(self) -> Chunk:
        if self._finished:
            raise StopAsyncIteration
        delta = self._first if self._first is not None else await self._stream.__anext__()
        self._first = None
        token_ids = tuple(delta.token_ids)
        self._entry.append(delta.from_index, token_ids)
        finish_reason = _FINISH_REASONS[delta.finish_reason]
        self._finished = finish_reason is not None
        return Chunk(
            text=delta.text,
            token_ids=token_ids,
            finish_reason=finish_reason,
            stop_reason=_stop_reason(delta),
            usage=self._entry.usage,
        )

    async def collect(self) -> Chunk:
        """The rest of the answer as one chunk."""
        chunks = [chunk async for chunk in self]
        return replace(
            chunks[-1],
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        )


def _stop_reason(delta: link.StreamDelta) -> int | str | None:
    match delta.WhichOneof("stop_reason"):
        case "stop_string":
            return delta.stop_string
        case "stop_token_id":
            return delta.stop_token_id
        case _:
            return None
