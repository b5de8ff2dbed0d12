"""Bad input, full replicas and lost ones over HTTP: an error object that names what is wrong."""

import json

import httpx
import pytest

from cluster.ingress.http_api import MAX_BODY_BYTES, create_app
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from qwen3_ray.errors import EngineError, OverloadedError, RequestError, UnavailableError
from tests.cluster.ingress.rig import BODY, URL, events_of


@pytest.mark.parametrize("stream", [False, True])
async def test_one_bad_prompt_of_several_refuses_all(
    http: httpx.AsyncClient, replica: FakeReplica, stream: bool
) -> None:
    replica.hold_after = 1
    response = await http.post(URL, json={**BODY, "prompt": [[1], [999]], "stream": stream})
    if stream and response.status_code == 200:
        assert events_of(response)[-1]["error"]["param"] == "prompt"
    else:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt"
    assert len(replica.aborted) == len(replica.submits)


BAD = [
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt"),
    ({"prompt": "x" * 64}, 400, "prompt"),
    ({"prompt": [1] * 64}, 400, "prompt"),
    ({"prompt": [256]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [2**80]}, 400, "prompt"),
    ({"prompt": "\ud800"}, 400, "prompt"),
    ({"prompt": None}, 400, "prompt"),
    ({"model": "other"}, 404, "model"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": "5"}, 400, "max_tokens"),
    ({"max_tokens": 2**40}, 400, "max_tokens"),
    ({"temperature": 3}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"seed": 2**64}, 400, "seed"),
    ({"stop": ["\ud800"]}, 400, "stop"),
    ({"stop_token_ids": [256]}, 400, "stop_token_ids"),
    ({"stop_token_ids": [2**40]}, 400, "stop_token_ids"),
    ({"n": 9}, 400, "n"),
    ({"n": 2, "temperature": 0}, 400, "n"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"prompt_logprobs": -1}, 400, "prompt_logprobs"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"min_tokens": 6}, 400, "min_tokens"),
    ({"min_p": 1.5}, 400, "min_p"),
    ({"presence_penalty": -2.5}, 400, "presence_penalty"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    ({"logit_bias": {"256": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
    ({"allowed_token_ids": [256]}, 400, "allowed_token_ids"),
    ({"allowed_token_ids": []}, 400, "allowed_token_ids"),
    ({"bad_words": [""]}, 400, "bad_words"),
    ({"truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
    ({"truncation_side": "up"}, 400, "truncation_side"),
    ({"priority": 2**40}, 400, "priority"),
    ({"cache_salt": ""}, 400, "cache_salt"),
    ({"cache_salt": "x" * 1025}, 400, "cache_salt"),
    ({"structured_outputs": {}}, 400, "structured_outputs"),
    ({"guided_regex": ""}, 400, "guided_regex"),
    ({"suffix": "x"}, 400, "suffix"),
    ({"stream": "yes"}, 400, "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "status", "param"), BAD, ids=str)
async def test_bad_input_is_named_and_the_server_serves_on(
    http: httpx.AsyncClient, fields: dict[str, object], status: int, param: str, stream: bool
) -> None:
    body = {**BODY, **({"stream": True} if stream else {}), **fields}
    if stream and "stream_options" in fields:
        body["stream_options"] = {"include_usage": 1}
    response = await http.post(URL, content=json.dumps(body))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, status, param)
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")
    assert error["message"].startswith(f"{param}: ")
    assert (await http.post(URL, json=BODY)).status_code == 200


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"prompt": "x", "temperature": NaN}', b"\xff\xfe"], ids=repr
)
async def test_what_is_no_json_object_is_a_bad_request(
    http: httpx.AsyncClient, content: bytes
) -> None:
    response = await http.post(URL, content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "BadRequestError"
    assert (await http.post(URL, json=BODY)).status_code == 200


async def test_a_body_over_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    async def parts():  # noqa: ANN202
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    for content in (b" " * (MAX_BODY_BYTES + 1), parts()):
        response = await http.post(URL, content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == 413


async def test_a_large_prompt_within_the_limits_is_served() -> None:
    replica = FakeReplica(max_model_len=300_000)
    router = Router(FakeLinks(replica), model="fake", tokenizer=FakeTokenizer())
    transport = httpx.ASGITransport(create_app(router))
    async with httpx.AsyncClient(transport=transport, base_url="http://fake") as client:
        response = await client.post(URL, json={**BODY, "prompt": "x" * 200_000})
    assert response.json()["usage"]["prompt_tokens"] == 200_000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", URL, 405),
        ("POST", "/health", 405),
        ("GET", "/v1/models/other", 404),
    ],
)
async def test_wrong_routes_are_error_objects_too(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == status


@pytest.mark.parametrize("stream", [False, True])
async def test_overload_is_429_with_a_time_to_come_back(
    http: httpx.AsyncClient, replica: FakeReplica, stream: bool
) -> None:
    replica.refusal = OverloadedError("full", retry_after_s=2.5)
    response = await http.post(URL, json={**BODY, "stream": stream})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["type"] == "RateLimitError"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError("draining"), 503),
        (EngineError("step 5: NaN"), 500),
        (RequestError("top_k", "no"), 400),
        (ZeroDivisionError("a secret"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_before_the_first_token_have_a_status(
    http: httpx.AsyncClient, replica: FakeReplica, error: Exception, status: int, stream: bool
) -> None:
    replica.refusal = error
    response = await http.post(URL, json={**BODY, "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == status
    assert "secret" not in response.text


async def test_an_error_in_a_stream_is_an_event(
    http: httpx.AsyncClient, replica: FakeReplica
) -> None:
    replica.break_after = 2
    events = events_of(await http.post(URL, json={**BODY, "stream": True}))
    assert [set(event) >= {"choices"} for event in events] == [True, True, False]
    assert events[-1]["error"]["type"] == "ServiceUnavailableError"
    assert events[-1]["error"]["code"] == 503
