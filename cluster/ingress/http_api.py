"""The OpenAI-compatible HTTP skin over a `Router`.

`x-request-id` is Serve's: its proxy hands it on and puts it into every response.
"""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cluster.ingress.completion_response import CompletionResponse, log_unexpected
from cluster.ingress.fields import UnknownFields
from cluster.ingress.statuses import error_object, http_error_object, http_headers, status_of
from cluster.ingress.wire.completion_body import parse_completion
from cluster.ingress.wire.json_answer import json_model
from cluster.ingress.wire.json_logprobs import Json
from cluster.router.router import Router
from qwen3_ray.errors import ModelNotFoundError, Qwen3RayError, UnavailableError

MAX_BODY_BYTES = 2 << 20
_LARGE_BODY = 64 << 10  # bytes; parsing more would hold up the event loop


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
        defaults = self._router.default_sampling
        if len(data) > _LARGE_BODY:
            completion = await asyncio.to_thread(parse_completion, data, defaults)
        else:
            completion = parse_completion(data, defaults)
        self._unknown_fields.note(completion.unknown_fields)
        return CompletionResponse(self._router, completion)

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


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for nothing else)
    content = http_error_object(error.status_code, error.detail)
    return JSONResponse(content, error.status_code, error.headers)


async def _on_error(_: Request, error: Exception) -> Response:
    log_unexpected(error)
    return JSONResponse(error_object(error), status_of(error).http, http_headers(error))
