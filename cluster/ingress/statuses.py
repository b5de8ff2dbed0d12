"""What an error looks like outside: one table for HTTP and gRPC, along the class's MRO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import grpc

from qwen3_ray.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    Qwen3RayError,
    RequestAbortedError,
    RequestError,
    UnavailableError,
)


@dataclass(frozen=True, slots=True)
class Status:
    """Codes of one class of errors, and its name in OpenAI's error object (vLLM's names)."""

    http: int
    grpc: grpc.StatusCode
    type: str


_INTERNAL = Status(500, grpc.StatusCode.INTERNAL, "InternalServerError")
_CLIENT_GONE = 499  # nginx's code; HTTP has none

_STATUSES: Mapping[type, Status] = {
    RequestError: Status(400, grpc.StatusCode.INVALID_ARGUMENT, "BadRequestError"),
    ModelNotFoundError: Status(404, grpc.StatusCode.NOT_FOUND, "NotFoundError"),
    OverloadedError: Status(429, grpc.StatusCode.RESOURCE_EXHAUSTED, "RateLimitError"),
    RequestAbortedError: Status(_CLIENT_GONE, grpc.StatusCode.CANCELLED, "RequestAbortedError"),
    UnavailableError: Status(503, grpc.StatusCode.UNAVAILABLE, "ServiceUnavailableError"),
    DeadlineExceededError: Status(504, grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineExceededError"),
}
_HTTP_TYPES = {status.http: status.type for status in _STATUSES.values()} | {
    413: "RequestTooLargeError"  # its phrase differs between Python versions
}

# The HTTP API takes token ids under `prompt`, too.
_HTTP_PARAMS = {"prompt_token_ids": "prompt"}


def status_of(error: BaseException) -> Status:
    """The entry of the nearest class along the MRO; anything else is our fault."""
    found = (_STATUSES[cls] for cls in type(error).__mro__ if cls in _STATUSES)
    return next(found, _INTERNAL)


def message_of(error: BaseException) -> str:
    """What a client may read; the text of an unexpected error stays inside."""
    return str(error) if isinstance(error, Qwen3RayError) else "internal error"


def retry_after_s(error: BaseException) -> float | None:
    """Seconds after which a client should try again; None if trying again is no use."""
    if isinstance(error, OverloadedError):
        return error.retry_after_s
    return 1.0 if isinstance(error, UnavailableError) else None


def error_object(error: BaseException) -> dict[str, object]:
    """OpenAI's error object."""
    status = status_of(error)
    message, param = message_of(error), None
    if isinstance(error, RequestError) and error.param is not None:
        param = _HTTP_PARAMS.get(error.param, error.param)
        message = f"{param}: {error.message}"
    return _error_object(message, status.type, param, status.http)


def http_error_object(code: int, message: str) -> dict[str, object]:
    """OpenAI's error object for a status that no error class stands for (405, 413, ...)."""
    phrase = HTTPStatus(code).phrase
    kind = _HTTP_TYPES.get(code, phrase.title().replace(" ", "") + "Error")
    return _error_object(message or phrase, kind, None, code)


def http_headers(error: BaseException) -> dict[str, str]:
    """Headers of an error response: whole seconds, as the header wants them."""
    wait_s = retry_after_s(error)
    return {} if wait_s is None else {"retry-after": str(math.ceil(wait_s))}


def _error_object(message: str, kind: str, param: str | None, code: int) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
