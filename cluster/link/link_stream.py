"""One request's deltas, as they come over a link that many requests share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from protos.v1.link_pb2 import FinishReason, Reject, StreamDelta
from qwen3_ray.errors import (
    EngineError,
    OverloadedError,
    Qwen3RayError,
    RequestAbortedError,
    RequestError,
    UnavailableError,
)

ANSWERS = (FinishReason.STOP, FinishReason.LENGTH)


class LinkStream(AsyncIterator[StreamDelta]):
    """Deltas of one request over a link, in order; ends after the delta with a finish reason.

    A delta may hold no token: text alone, or logprobs of the prompt alone.

    The last delta's `finish_reason` is STOP or LENGTH; every other end is raised, after what
    had arrived before it was handed out. What waits here is bounded by the request's own
    max_tokens, so a slow reader holds nobody up.

    Iterating raises:
        OverloadedError: the replica has no room (nothing was computed); try another one.
        RequestError: the replica refuses the request as it is, or its engine does.
        UnavailableError: the link broke, the replica drains, lost its engine, or does not know
            the stream to attach to. `Attach` here, or a resume elsewhere, can go on.
        RequestAbortedError: the request was aborted, or another router has attached to it.
        EngineError: the engine failed on this request.
    """

    def __init__(self, request_id: str, on_end: Callable[[str, bool], None]) -> None:
        """`on_end(request_id, abort)` is called once, when the stream ends or is closed."""
        self.request_id = request_id
        self._on_end = on_end
        self._deltas: deque[StreamDelta] = deque()
        self._ended = False
        self._error: Qwen3RayError | None = None
        self._news = asyncio.Event()

    async def __anext__(self) -> StreamDelta:
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._deltas.popleft()

    async def aclose(self) -> None:
        """Abort what is unfinished (leaves with the next frame, never waits); idempotent."""
        if not self._ended:
            self._end(RequestAbortedError(f"request {self.request_id} was closed"), abort=True)

    def push(self, delta: StreamDelta) -> None:
        """Take a delta from the link."""
        if delta.finish_reason in ANSWERS:
            self._deltas.append(delta)
            self._end(None)
        elif delta.finish_reason == FinishReason.UNFINISHED:
            self._deltas.append(delta)
            self._news.set()
        else:
            error = _error_of(delta)
            if delta.token_ids or delta.prompt_logprobs:  # they came before the failure
                for name in ("finish_reason", "error", "error_param"):
                    delta.ClearField(name)
                self._deltas.append(delta)
            self._end(error)

    def reject(self, reject: Reject) -> None:
        """The replica does not serve the stream (any more)."""
        self._end(_error_of_reject(reject))

    def fail(self, error: Qwen3RayError) -> None:
        """The link is gone."""
        self._end(error)

    def _end(self, error: Qwen3RayError | None, *, abort: bool = False) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._on_end(self.request_id, abort)
        self._news.set()


def _error_of(delta: StreamDelta) -> Qwen3RayError:
    if delta.finish_reason == FinishReason.ABORT:
        return RequestAbortedError(delta.error or f"request {delta.request_id} was aborted")
    if delta.finish_reason == FinishReason.LOST:
        return UnavailableError(delta.error or "the replica lost its engine")
    if delta.error_param:
        return RequestError(delta.error_param, delta.error)
    return EngineError(delta.error or "the engine failed")


def _error_of_reject(reject: Reject) -> Qwen3RayError:
    if reject.reason == Reject.OVERLOADED:
        return OverloadedError(reject.message, retry_after_s=reject.retry_after_s)
    if reject.reason == Reject.INVALID:
        return RequestError(reject.param or None, reject.message)
    if reject.reason == Reject.TAKEN_OVER:
        return RequestAbortedError(reject.message)
    return UnavailableError(reject.message)
