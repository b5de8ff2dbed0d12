"""Each class of errors has one status, in both skins."""

import grpc
import pytest

from cluster.ingress.statuses import (
    error_object,
    http_error_object,
    http_headers,
    message_of,
    retry_after_s,
    status_of,
)
from qwen3_ray import errors
from qwen3_ray.errors import (
    DeadlineExceededError,
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    PromptTooLongError,
    RequestAbortedError,
    RequestError,
    UnavailableError,
)

CODE = grpc.StatusCode
TABLE = [
    (RequestError("top_p", "bad"), 400, CODE.INVALID_ARGUMENT, "BadRequestError"),
    (PromptTooLongError("prompt", "long"), 400, CODE.INVALID_ARGUMENT, "BadRequestError"),
    (ModelNotFoundError("model", "no"), 404, CODE.NOT_FOUND, "NotFoundError"),
    (OverloadedError("full"), 429, CODE.RESOURCE_EXHAUSTED, "RateLimitError"),
    (RequestAbortedError("gone"), 499, CODE.CANCELLED, "RequestAbortedError"),
    (UnavailableError("none"), 503, CODE.UNAVAILABLE, "ServiceUnavailableError"),
    (DeadlineExceededError("late"), 504, CODE.DEADLINE_EXCEEDED, "DeadlineExceededError"),
    (EngineError("nan"), 500, CODE.INTERNAL, "InternalServerError"),
    (ValueError("a secret"), 500, CODE.INTERNAL, "InternalServerError"),
]


@pytest.mark.parametrize(
    ("error", "http", "code", "kind"), TABLE, ids=lambda value: type(value).__name__
)
def test_the_table(error: Exception, http: int, code: grpc.StatusCode, kind: str) -> None:
    status = status_of(error)
    assert (status.http, status.grpc, status.type) == (http, code, kind)
    body = error_object(error)["error"]
    assert (body["code"], body["type"]) == (http, kind)


def test_every_error_of_the_tree_that_a_request_can_meet_is_in_the_table() -> None:
    tested = {type(error) for error, *_ in TABLE}
    settings = {errors.ConfigError, errors.ResourcesError, errors.CheckpointError}
    tree = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.Qwen3RayError)
    }
    assert tree - settings - {errors.Qwen3RayError} <= tested


def test_a_new_kind_of_error_takes_the_status_of_its_base() -> None:
    class StrangeError(ModelNotFoundError):
        pass

    assert status_of(StrangeError("model", "no")).http == 404


def test_the_text_of_an_unexpected_error_stays_inside() -> None:
    assert "secret" not in message_of(ValueError("a secret"))
    assert "secret" not in str(error_object(ValueError("a secret")))


def test_the_parameter_is_spelled_as_the_http_api_spells_it() -> None:
    body = error_object(RequestError("prompt_token_ids", "each must be below 5"))["error"]
    assert body["param"] == "prompt"
    assert body["message"] == "prompt: each must be below 5"


def test_errors_that_pass_say_when_to_come_back() -> None:
    assert http_headers(OverloadedError("full", retry_after_s=2.2)) == {"retry-after": "3"}
    assert retry_after_s(OverloadedError("full", retry_after_s=2.2)) == 2.2
    assert http_headers(UnavailableError("none")) == {"retry-after": "1"}
    assert http_headers(RequestError("n", "bad")) == {}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, "BadRequestError"),
        (404, "NotFoundError"),
        (405, "MethodNotAllowedError"),
        (413, "RequestTooLargeError"),
    ],
)
def test_bare_http_statuses_have_names_too(code: int, kind: str) -> None:
    body = http_error_object(code, "why")["error"]
    assert body == {"message": "why", "type": kind, "param": None, "code": code}
