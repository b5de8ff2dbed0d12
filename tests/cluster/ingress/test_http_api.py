"""The HTTP skin: OpenAI's shapes, and what is told of the server."""

import httpx
import pytest

from cluster.router.router import STALLED_AFTER_S
from cluster.router.testing import FakeLinks, FakeReplica
from protos.v1 import link_pb2 as link
from qwen3_ray import __version__
from tests.cluster.ingress.rig import BODY, URL, events_of


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
