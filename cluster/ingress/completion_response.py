"""The answer to `POST /v1/completions`, made while it is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.ingress.events import Events, event_data
from cluster.ingress.rendering import render
from cluster.ingress.statuses import error_object
from cluster.ingress.wire.completion_body import Completion
from cluster.ingress.wire.json_answer import ChoiceWriter, json_envelope, json_usage
from cluster.ingress.wire.json_logprobs import Json
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.router import Router
from qwen3_ray.errors import Qwen3RayError

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class CompletionResponse(Response):
    """Does the work of a completion while it answers, and stops it when the client leaves."""

    def __init__(self, router: Router, completion: Completion) -> None:
        super().__init__()
        self._router = router
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = (
            self._stream(send) if self._completion.stream else self._whole(scope, receive, send)
        )
        await _until_disconnect(receive, answer)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = await self._for_each_prompt(self._collect)
        generations = [generation for generation, _ in parts]
        content: Json = {
            **json_envelope(self._completion, generations[0]),
            "choices": [choice for _, choices in parts for choice in choices],
            "usage": json_usage([generation.usage for generation in generations]),
        }
        if any(map(_wants_logprobs, self._completion.requests)):
            response = await asyncio.to_thread(JSONResponse, content)
        else:
            response = JSONResponse(content)
        await response(scope, receive, send)

    async def _collect(self, number: int) -> tuple[Generation, list[Json]]:
        """The answers to one prompt, whole."""
        async with self._router.generate(self._completion.requests[number]) as generation:
            writers = self._writers(number, generation)
            chunks = await generation.collect()

        def write() -> list[Json]:
            return [writers[chunk.index].write(chunk) for chunk in chunks]

        return generation, await render(write, generation, chunks)

    async def _stream(self, send: Send) -> None:
        events = Events(send)
        try:
            generations = await self._for_each_prompt(lambda number: self._relay(number, events))
            if self._completion.include_usage:
                envelope = json_envelope(self._completion, generations[0])
                usage = json_usage([generation.usage for generation in generations])
                await events.emit(event_data({**envelope, "choices": [], "usage": usage}))
        except Exception as error:
            if not events.started:
                raise  # the status can still tell
            log_unexpected(error)
            await events.emit(event_data(error_object(error)))
        await events.end()

    async def _relay(self, number: int, events: Events) -> Generation:
        """Send the pieces of the answers to one prompt as they come."""
        completion = self._completion
        async with self._router.generate(completion.requests[number]) as generation:
            envelope = json_envelope(completion, generation)
            writers = self._writers(number, generation)
            async for chunk in generation:
                writer = writers[chunk.index]
                if not writer.has_news(chunk):
                    continue
                write = partial(self._event_data, envelope, generation, writer, chunk)
                await events.emit(await render(write, generation, [chunk]))
        return generation

    def _event_data(
        self, envelope: Json, generation: Generation, writer: ChoiceWriter, chunk: Chunk
    ) -> str:
        event: Json = {**envelope, "choices": [writer.write(chunk)]}
        if self._completion.continuous_usage:
            event["usage"] = json_usage([generation.usage])
        return event_data(event)

    def _writers(self, number: int, generation: Generation) -> list[ChoiceWriter]:
        num_choices = generation.request.params.n
        return [
            ChoiceWriter(
                number * num_choices + choice,
                self._completion,
                generation,
                self._router.tokenizer,
            )
            for choice in range(num_choices)
        ]

    async def _for_each_prompt(self, work: Callable[[int], Coroutine[Any, Any, _T]]) -> list[_T]:
        return await _all([work(number) for number in range(len(self._completion.requests))])


def _wants_logprobs(request: InferenceRequest) -> bool:
    params = request.params
    return params.logprobs is not None or params.prompt_logprobs is not None


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it (and wait for that) when the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait((working, leaving))
    if not working.cancelled():
        working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _all(works: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run all at once; the first error cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def log_unexpected(error: Exception) -> None:
    """Errors of ours that have no class of their own must not be lost."""
    if not isinstance(error, Qwen3RayError):
        _logger.error("a completion failed", exc_info=error)
