"""The HTTP skin: OpenAI's shapes, errors as objects, and work that stops with its client."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from cluster.ingress.http_api import MAX_BODY_BYTES, create_app
from cluster.router.router import STALLED_AFTER_S, Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from protos.v1 import link_pb2 as link
from qwen3_ray import __version__
from qwen3_ray.errors import EngineError, OverloadedError, RequestError, UnavailableError

URL = "/v1/completions"
BODY = {"model": "fake", "prompt": "hello", "max_tokens": 5, "seed": 3}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, which must end with [DONE]."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_completion_has_the_shape_of_openai(http: httpx.AsyncClient) -> None:
    response = await http.post(URL, json=BODY)
    assert response.status_code == 200
    answer = response.json()
    choice = answer["choices"][0]
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert (answer["model"], answer["seed"]) == ("fake", 3)
    assert answer["system_fingerprint"] == "replica-1-numerics"
    assert isinstance(answer["created"], int)
    assert len(answer["choices"]) == 1
    assert len(choice.pop("text")) == 5
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_the_model_may_be_left_out(http: httpx.AsyncClient) -> None:
    response = await http.post(URL, json={"prompt": "hello"})
    assert (response.status_code, response.json()["model"]) == (200, "fake")


async def test_a_drawn_seed_repeats_the_answer(http: httpx.AsyncClient) -> None:
    first = (await http.post(URL, json={**BODY, "seed": None})).json()
    again = (await http.post(URL, json={**BODY, "seed": first["seed"]})).json()
    assert again["choices"] == first["choices"]


async def test_token_ids_come_when_asked_for(http: httpx.AsyncClient) -> None:
    choice = (await http.post(URL, json={**BODY, "return_token_ids": True})).json()["choices"][0]
    assert choice["prompt_token_ids"] == list(b"hello")
    assert bytes(choice["token_ids"]).decode() == choice["text"]
    events = events_of(
        await http.post(URL, json={**BODY, "return_token_ids": True, "stream": True})
    )
    assert events[0]["choices"][0]["prompt_token_ids"] == list(b"hello")
    assert "prompt_token_ids" not in events[1]["choices"][0]
    ids = [id_ for event in events for id_ in event["choices"][0]["token_ids"]]
    assert ids == choice["token_ids"]


async def test_a_stream_is_the_answer_in_pieces(http: httpx.AsyncClient) -> None:
    whole = (await http.post(URL, json=BODY)).json()
    events = events_of(await http.post(URL, json={**BODY, "stream": True}))
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
    assert len({event["id"] for event in events}) == 1
    for event in events:
        assert event["object"] == "text_completion"
        assert event["seed"] == 3
        assert event["system_fingerprint"] == "replica-1-numerics"
        assert "usage" not in event


async def test_usage_of_a_stream_comes_last_and_without_choices(http: httpx.AsyncClient) -> None:
    whole = (await http.post(URL, json=BODY)).json()
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    events = events_of(await http.post(URL, json=body))
    assert len(events) == 6
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert not any("usage" in event for event in events[:-1])


async def test_usage_may_come_with_every_chunk(http: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**BODY, "stream": True, "stream_options": options}
    events = events_of(await http.post(URL, json=body))
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 4, 5, 5]


async def test_a_stop_string_is_told(http: httpx.AsyncClient) -> None:
    letters = [chr(code) for code in range(97, 113)]
    body = {**BODY, "max_tokens": 40, "stop": letters}
    choice = (await http.post(URL, json=body)).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] in letters


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_give_indexed_choices(http: httpx.AsyncClient, stream: bool) -> None:
    prompts = ["one", list(b"two"), "three"]
    alone = [
        (await http.post(URL, json={**BODY, "prompt": prompt})).json()["choices"][0]["text"]
        for prompt in prompts
    ]
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = await http.post(URL, json={**BODY, "prompt": prompts, **options})
    texts = ["", "", ""]
    if stream:
        events = events_of(response)
        usage = events[-1]["usage"]
        for event in events[:-1]:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    else:
        usage = response.json()["usage"]
        for choice in response.json()["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == alone
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (11, 15)


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
    ({"n": 2}, 400, "n"),
    ({"logprobs": 1}, 400, "logprobs"),
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


async def test_models(http: httpx.AsyncClient) -> None:
    models = (await http.get("/v1/models")).json()
    assert models["object"] == "list"
    (model,) = models["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake", "model", 64)
    assert (await http.get("/v1/models/fake")).json() == model


async def test_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/version")).json() == {"version": __version__}


async def test_health_is_the_replicas_and_liveness_is_ours(
    http: httpx.AsyncClient, replica: FakeReplica, links: FakeLinks
) -> None:
    async def codes() -> list[int]:
        paths = ("/health", "/readyz", "/livez")
        return [(await http.get(path)).status_code for path in paths]

    assert await codes() == [200, 200, 200]
    replica.load = link.Load(step_age_s=STALLED_AFTER_S + 1)
    assert await codes() == [503, 200, 200]
    links.ready.clear()
    assert await codes() == [503, 503, 200]


class Client:
    """Speaks ASGI itself, to leave when it likes."""

    def __init__(self, body: dict[str, object]) -> None:
        self._body = json.dumps(body).encode()
        self._requested = False
        self.left = asyncio.Event()
        self.messages: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._requested:
            await self.left.wait()
            return {"type": "http.disconnect"}
        self._requested = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def call(self, app: Callable[..., Awaitable[None]]) -> Awaitable[None]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": URL,
            "raw_path": URL.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"fake")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        return app(scope, self.receive, self.send)


@pytest.mark.parametrize("hold_after", [0, 2], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hello", ["hello", "world"]], ids=["one", "two"])
async def test_the_work_stops_when_the_client_leaves(
    router: Router, replica: FakeReplica, prompt: object, stream: bool, hold_after: int
) -> None:
    replica.hold_after = hold_after
    client = Client({**BODY, "prompt": prompt, "stream": stream})
    serving = asyncio.ensure_future(client.call(create_app(router)))
    num_streams = 1 if prompt == "hello" else 2
    await replica.wait(num_submits=num_streams)
    assert replica.aborted == []
    client.left.set()
    await replica.wait(num_aborted=num_streams)
    async with asyncio.timeout(10):
        await serving
    assert not any(message.get("body", b"").endswith(b"[DONE]\n\n") for message in client.messages)


async def test_the_work_stops_when_serve_cancels_the_handler(
    router: Router, replica: FakeReplica
) -> None:
    replica.hold_after = 2
    client = Client({**BODY, "stream": True})
    serving = asyncio.ensure_future(client.call(create_app(router)))
    await replica.wait(num_submits=1)
    serving.cancel()
    await replica.wait(num_aborted=1)
    await asyncio.wait([serving])
    assert serving.cancelled()
