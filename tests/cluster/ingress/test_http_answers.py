"""HTTP answers in full: several of them, logprobs, the prompt in front."""

from typing import Any

import httpx
import pytest

from cluster.ingress.http_api import create_app
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeStream, FakeTokenizer
from protos.v1 import link_pb2 as link
from tests.cluster.ingress.rig import BODY, URL, events_of

LM_EVAL = {"model": "fake", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}


async def whole(http: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await http.post(URL, json={**BODY, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def events(http: httpx.AsyncClient, **fields: object) -> list[dict[str, Any]]:
    return events_of(await http.post(URL, json={**BODY, **fields, "stream": True}))


async def test_several_answers_to_several_prompts_are_numbered_through(
    http: httpx.AsyncClient, replica: FakeReplica
) -> None:
    replica.num_cached_tokens = 2
    answer = await whole(http, prompt=["hello", "you"], n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert len({choice["text"] for choice in answer["choices"]}) == 6
    assert answer["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 30,
        "total_tokens": 38,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert len({submit.sampling.seed for submit in replica.submits}) == 1


async def test_streamed_answers_interleave_and_are_those_of_the_whole(
    http: httpx.AsyncClient,
) -> None:
    fields = {"n": 3, "logprobs": 1, "stream_options": {"include_usage": True}}
    expected = await whole(http, n=3, logprobs=1)
    *pieces, last = await events(http, **fields)
    indexes = [piece["choices"][0]["index"] for piece in pieces]
    assert indexes[:6] == [0, 1, 2, 0, 1, 2]
    for choice in expected["choices"]:
        own = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [piece["finish_reason"] for piece in own] == [None] * 4 + ["length"]
        for name, column in choice["logprobs"].items():
            assert [value for piece in own for value in piece["logprobs"][name]] == column
    assert (last["choices"], last["usage"]) == ([], expected["usage"])


async def test_a_choice_has_openais_logprobs(http: httpx.AsyncClient) -> None:
    (choice,) = (await whole(http, logprobs=2))["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
        assert list(top.values()) == sorted(top.values(), reverse=True)
    assert "prompt_logprobs" not in choice


async def test_tokens_may_be_told_as_ids(http: httpx.AsyncClient) -> None:
    fields = {"logprobs": 1, "return_tokens_as_token_ids": True, "return_token_ids": True}
    (choice,) = (await whole(http, **fields))["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id_}" for id_ in choice["token_ids"]]
    assert all(key.startswith("token_id:") for key in choice["logprobs"]["top_logprobs"][0])
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("prompt", ["h€llo", list("h€llo".encode())], ids=["text", "ids"])
async def test_an_echo_begins_with_the_prompt(
    http: httpx.AsyncClient, prompt: str | list[int]
) -> None:
    plain = await whole(http, prompt=prompt, echo=True)
    (choice,) = plain["choices"]
    assert choice["text"].startswith("h€llo")
    assert (len(choice["text"]), choice["logprobs"]) == (10, None)
    (choice,) = (await whole(http, prompt=prompt, echo=True, logprobs=0))["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:5] == ["h", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "l"]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert None not in logprobs["token_logprobs"][1:]
    assert logprobs["text_offset"] == [0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert plain["usage"]["prompt_tokens"] == 7


async def test_an_echo_comes_with_the_first_event_of_each_choice(http: httpx.AsyncClient) -> None:
    pieces = [e["choices"][0] for e in await events(http, echo=True, logprobs=1, n=2)]
    for index in range(2):
        first, *others = [piece for piece in pieces if piece["index"] == index]
        assert first["text"].startswith("hello")
        assert len(first["text"]) == len(first["logprobs"]["tokens"]) == 6
        assert [len(piece["text"]) for piece in others] == [1] * 4


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_scored_without_an_answer(http: httpx.AsyncClient, stream: bool) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
    if stream:
        (event,) = await events(http, **fields)
        (choice,) = event["choices"]
    else:
        (choice,) = (await whole(http, **fields))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hello", "length")
    assert choice["logprobs"]["tokens"] == list("hello")


async def test_vllms_prompt_logprobs_come_with_the_first_piece(http: httpx.AsyncClient) -> None:
    (choice,) = (await whole(http, prompt_logprobs=1))["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for token_id, entry in zip(b"ello", others, strict=True):
        assert entry[str(token_id)]["decoded_token"] == chr(token_id)
        assert {1, entry[str(token_id)]["rank"]} == {value["rank"] for value in entry.values()}
    pieces = [event["choices"][0] for event in await events(http, prompt_logprobs=1)]
    assert pieces[0]["prompt_logprobs"] == choice["prompt_logprobs"]
    assert not any("prompt_logprobs" in piece for piece in pieces[1:])


async def test_the_prompts_logprobs_do_not_wait_for_text_that_is_held_back() -> None:
    class Held(FakeStream):
        """The first token's text comes with the second's."""

        def _add_token(self, delta: link.StreamDelta, token_id: int) -> None:
            super()._add_token(delta, token_id)
            delta.text = {1: "", 2: self._text}.get(len(self._text), delta.text)

    class Holding(FakeReplica):
        def open(self, submit: link.Submit) -> FakeStream:
            return Held(self, submit)

    router = Router(FakeLinks(Holding()), model="fake", tokenizer=FakeTokenizer())
    transport = httpx.ASGITransport(create_app(router))
    async with httpx.AsyncClient(transport=transport, base_url="http://fake") as http:
        scored = [event["choices"][0] for event in await events(http, prompt_logprobs=1)]
        plain = [event["choices"][0] for event in await events(http)]
    assert [len(piece["text"]) for piece in scored] == [0, 2, 1, 1, 1]
    assert len(scored[0]["prompt_logprobs"]) == 5
    assert [len(piece["text"]) for piece in plain] == [2, 1, 1, 1]


async def test_an_echo_with_fewer_logprobs_than_the_prompts_shows_its_own(
    http: httpx.AsyncClient,
) -> None:
    (choice,) = (await whole(http, echo=True, logprobs=0, prompt_logprobs=2))["choices"]
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"][1:])
    assert all(len(entry) >= 2 for entry in choice["prompt_logprobs"][1:])


async def test_lm_evals_loglikelihood_can_be_read(http: httpx.AsyncClient) -> None:
    """The rule by which lm-evaluation-harness reads choices, in our words.

    A context and its continuation are one list of token ids; the continuation's logprobs are
    those from the context's length on, without the one generated token. A continuation is greedy
    if each of its tokens is as likely as the likeliest one there.
    """
    batch = [
        (list(b"the "), list(b"cat")),
        (list(b"a"), list(b"rose is")),
        (list(b"x"), [121]),
        ([5], list(b"cc")),
    ]
    prompts = [context + continuation for context, continuation in batch]
    response = await http.post(URL, json={**LM_EVAL, "prompt": prompts, "echo": True})
    assert response.status_code == 200, response.text
    choices = sorted(response.json()["choices"], key=lambda choice: int(choice["index"]))
    assert len(choices) == len(batch)
    for (context, continuation), choice in zip(batch, choices, strict=True):
        kept = slice(len(context), -1)
        logprobs = choice["logprobs"]["token_logprobs"][kept]
        tops = choice["logprobs"]["top_logprobs"][kept]
        ranks = [1 + token_id % 3 for token_id in continuation]  # as the fake replica has it
        assert sum(logprobs) == sum(-rank / 4 for rank in ranks)
        greedy = all(
            logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True)
        )
        assert greedy == all(rank == 1 for rank in ranks)
