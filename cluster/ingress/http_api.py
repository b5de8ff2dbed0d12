"""The OpenAI-compatible HTTP skin over a `Router`.

`x-request-id` is Serve's: its proxy hands it on and puts it into every response.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.ingress.fields import UnknownFields
from cluster.ingress.statuses import error_object, http_error_object, http_headers, status_of
from cluster.ingress.wire import (
    Completion,
    Json,
    json_choice,
    json_envelope,
    json_model,
    json_usage,
    parse_completion,
)
from cluster.router.generation import Generation
from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.router import Router
from qwen3_ray.errors import ModelNotFoundError, Qwen3RayError, UnavailableError
from qwen3_ray.request import Usage

MAX_BODY_BYTES = 2 << 20
_LARGE_BODY = 64 << 10  # bytes; parsing more would hold up the event loop

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def create_app(router: Router) -> FastAPI:
    """The HTTP API of one router; every error is an OpenAI error object."""
    app = FastAPI(title="Qwen3 Ray", openapi_url=None)
    api = _Api(router)
    for path, handler, method in (
        ("/v1/completions", api.completions, "POST"),
        ("/v1/models", api.models, "GET"),
        ("/v1/models/{model:path}", api.model, "GET"),
        ("/version", api.version, "GET"),
        ("/health", api.health, "GET"),
        ("/readyz", api.readyz, "GET"),
        ("/livez", api.livez, "GET"),
    ):
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Qwen3RayError, _on_error)
    app.add_exception_handler(Exception, _on_error)
    return app


class _Api:
    def __init__(self, router: Router) -> None:
        self._router = router
        self._created = int(time.time())
        self._unknown_fields = UnknownFields()

    async def completions(self, request: Request) -> Response:
        data = await _read_body(request)
        if len(data) > _LARGE_BODY:
            completion = await asyncio.to_thread(parse_completion, data)
        else:
            completion = parse_completion(data)
        self._unknown_fields.note(completion.unknown_fields)
        return _CompletionResponse(self._router, completion)

    async def models(self) -> Json:
        return {"object": "list", "data": [self._model()]}

    async def model(self, model: str) -> Json:
        entry = self._model()
        if model != entry["id"]:
            raise ModelNotFoundError(
                "model", f"{model!r:.200} does not exist; {entry['id']!r} is served here"
            )
        return entry

    def _model(self) -> Json:
        return json_model(self._router.model_info, created=self._created)

    async def version(self) -> Json:
        return {"version": self._router.model_info.version}

    async def health(self) -> Json:
        """Whether somebody who sends a request now gets an answer."""
        if not self._router.healthy:
            raise UnavailableError("no replica makes progress")
        return {"status": "ok"}

    async def readyz(self) -> Json:
        if not self._router.ready:
            raise UnavailableError("no replica is ready")
        return {"status": "ok"}

    async def livez(self) -> Json:
        return {"status": "ok"}


class _CompletionResponse(Response):
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
        completion = self._completion
        parts = await _all([self._collect(request) for request in completion.requests])
        content: Json = {
            **json_envelope(completion, parts[0][0]),
            "choices": [
                json_choice(
                    index,
                    chunk,
                    return_token_ids=completion.return_token_ids,
                    prompt_token_ids=generation.prompt_token_ids,
                )
                for index, (generation, chunk) in enumerate(parts)
            ],
            "usage": json_usage([chunk.usage for _, chunk in parts]),
        }
        await JSONResponse(content)(scope, receive, send)

    async def _collect(self, request: InferenceRequest) -> tuple[Generation, Chunk]:
        async with self._router.generate(request) as generation:
            return generation, await generation.collect()

    async def _stream(self, send: Send) -> None:
        events = _Events(send)
        try:
            requests = enumerate(self._completion.requests)
            parts = await _all([self._relay(index, request, events) for index, request in requests])
            if self._completion.include_usage:
                generation = parts[0][0]
                usage = json_usage([usage for _, usage in parts])
                envelope = json_envelope(self._completion, generation)
                await events.emit({**envelope, "choices": [], "usage": usage})
        except Exception as error:
            if not events.started:
                raise  # the status can still tell
            _log_unexpected(error)
            await events.emit(error_object(error))
        await events.end()

    async def _relay(
        self, index: int, request: InferenceRequest, events: _Events
    ) -> tuple[Generation, Usage]:
        """Send one choice's chunks as they come; return its usage."""
        completion = self._completion
        async with self._router.generate(request) as generation:
            envelope = json_envelope(completion, generation)
            prompt_token_ids: tuple[int, ...] | None = generation.prompt_token_ids
            async for chunk in generation:
                usage = chunk.usage
                if not (chunk.text or chunk.finish_reason or completion.return_token_ids):
                    continue  # all of its text is held back
                choice = json_choice(
                    index,
                    chunk,
                    return_token_ids=completion.return_token_ids,
                    prompt_token_ids=prompt_token_ids,
                )
                prompt_token_ids = None
                event: Json = {**envelope, "choices": [choice]}
                if completion.continuous_usage:
                    event["usage"] = json_usage([usage])
                await events.emit(event)
        return generation, usage


class _Events:
    """Server-sent events. The response starts with the first one: until then it can still fail."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()  # several choices write
        self.started = False

    async def emit(self, content: Json) -> None:
        data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        await self._write(data, more=True)

    async def end(self) -> None:
        await self._write("[DONE]", more=False)

    async def _write(self, data: str, *, more: bool) -> None:
        async with self._lock:
            if not self.started:
                self.started = True
                await self._send(
                    {"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS}
                )
            body = f"data: {data}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": more})


_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise
]


async def _read_body(request: Request) -> bytes:
    """The body, unless it is too large: the declared length is checked before reading."""
    too_large = HTTPException(413, f"the body may have at most {MAX_BODY_BYTES} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise too_large
    return bytes(data)


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


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for nothing else)
    content = http_error_object(error.status_code, error.detail)
    return JSONResponse(content, error.status_code, error.headers)


async def _on_error(_: Request, error: Exception) -> Response:
    _log_unexpected(error)
    return JSONResponse(error_object(error), status_of(error).http, http_headers(error))


def _log_unexpected(error: Exception) -> None:
    if not isinstance(error, Qwen3RayError):
        _logger.error("a completion failed", exc_info=error)
