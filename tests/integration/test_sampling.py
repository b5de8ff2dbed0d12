"""Every parameter reaches the engine of a served model, and what it says comes back.

Shares its server with test_serve.py, which stops it.
"""

from __future__ import annotations

import json
import re
from typing import Any

import grpc
import jsonschema
import pytest

from protos.v1.generate_pb2 import GenerateRequest, StructuredOutputs, TokenIds
from protos.v1.generate_pb2 import SamplingParams as WireParams
from protos.v1.generate_pb2_grpc import GenerateServiceStub
from tests.integration.server import Server

PROMPT = "Mr. Darcy looked at her and"
LONG_PROMPT = [100 + number % 900 for number in range(300)]
GREEDY = {"temperature": 0, "max_tokens": 12}


def choices_of(server: Server, **fields: object) -> list[dict[str, Any]]:
    """Choices of an answer with token ids."""
    answer = server.post({"prompt": PROMPT, "return_token_ids": True, **fields})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"])


def choice_of(server: Server, **fields: object) -> dict[str, Any]:
    (choice,) = choices_of(server, **fields)
    return choice


def cached_tokens(server: Server, **fields: object) -> int:
    answer = server.post({"max_tokens": 1, **fields})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_three_answers_with_logprobs_are_the_same_over_both(
    server: Server, stub: GenerateServiceStub
) -> None:
    sampling = {"n": 3, "logprobs": 2, "seed": 7, "max_tokens": 8, "temperature": 0.9}
    over_http = choices_of(server, **sampling)
    request = GenerateRequest(prompt=PROMPT, sampling=WireParams(**sampling))
    response = stub.Generate(request, timeout=60)
    assert len({choice["text"] for choice in over_http}) == 3
    assert response.usage.completion_tokens == 24
    for mine, its in zip(over_http, response.choices, strict=True):
        assert mine["text"] == its.text
        assert mine["token_ids"] == list(its.token_ids)
        assert mine["logprobs"]["token_logprobs"] == [one.logprob for one in its.logprobs]
        assert mine["logprobs"]["tokens"] == [one.token.decode() for one in its.logprobs]
    merged: dict[int, str] = {}
    for chunk in stub.GenerateStream(request, timeout=60):
        for choice in chunk.choices:
            merged[choice.index] = merged.get(choice.index, "") + choice.text
    assert [merged[index] for index in range(3)] == [choice["text"] for choice in over_http]


def test_tokens_score_the_same_as_output_and_as_prompt(server: Server) -> None:
    """Exact numerics: however a token came about, its logprob has the same bits."""
    answer = choice_of(server, logprobs=3, seed=5, temperature=1.0, max_tokens=10)
    prompt = answer["prompt_token_ids"]
    scored = choice_of(
        server, prompt=[*prompt, *answer["token_ids"]], echo=True, logprobs=3, max_tokens=0
    )
    assert scored["text"] == PROMPT + answer["text"]
    assert scored["token_ids"] == []
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert scored["logprobs"][name][len(prompt) :] == answer["logprobs"][name]
    assert scored["logprobs"]["token_logprobs"][0] is None


def test_lm_evals_loglikelihoods_know_what_is_greedy(server: Server) -> None:
    """Its rule: a continuation is greedy if each token is the likeliest in its place."""
    greedy = choice_of(server, **GREEDY)
    context = greedy["prompt_token_ids"]
    continuations = [greedy["token_ids"], [*greedy["token_ids"][:-1], 5], [5, 6, 7]]
    answer = server.post(
        {
            "prompt": [[*context, *continuation] for continuation in continuations],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "echo": True,
            "seed": 1234,
        }
    ).json()
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    verdicts, sums = [], []
    for choice in choices:
        logprobs = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        pairs = zip(logprobs, tops, strict=True)
        verdicts.append(all(one == max(top.values()) for one, top in pairs))
        sums.append(sum(logprobs))
    assert verdicts == [True, False, False]
    assert max(sums) == sums[0] < 0


def test_a_shared_beginning_is_computed_once_and_changes_nothing(server: Server) -> None:
    alone = choice_of(server, prompt=LONG_PROMPT, cache_salt="alone", **GREEDY)
    assert cached_tokens(server, prompt=LONG_PROMPT, cache_salt="shared") == 0
    longer = [*LONG_PROMPT, 7, 8, 9]
    assert cached_tokens(server, prompt=longer, cache_salt="shared") >= 256
    assert cached_tokens(server, prompt=longer, cache_salt="other") == 0
    again = choice_of(server, prompt=LONG_PROMPT, cache_salt="shared", logprobs=1, **GREEDY)
    assert again["token_ids"] == alone["token_ids"]


def ids_of(server: Server, **fields: object) -> list[int]:
    return list(choice_of(server, **{**GREEDY, **fields})["token_ids"])


def test_what_steers_the_sampler_steers_the_answer(server: Server) -> None:
    plain = choice_of(server, **GREEDY)
    first, last_word = plain["token_ids"][0], plain["text"].split()[-1]
    assert ids_of(server, logit_bias={"300": 100}) == [300] * 12
    assert ids_of(server, logit_bias={str(first): -100})[0] != first
    assert set(ids_of(server, allowed_token_ids=[300, 301, 302])) <= {300, 301, 302}
    sharp = ids_of(server, temperature=1.5, seed=3, min_p=1.0)
    assert sharp == plain["token_ids"]  # nothing but the likeliest token is as likely as it
    assert last_word not in choice_of(server, **GREEDY, bad_words=[last_word])["text"].split()


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_make_an_answer_that_goes_round_in_circles_more_various(
    server: Server, penalty: str
) -> None:
    plain = ids_of(server, max_tokens=60)
    various = ids_of(server, max_tokens=60, **{penalty: 1.8})
    assert len(set(various)) > len(set(plain))


def test_nothing_ends_an_answer_before_its_fewest_tokens(server: Server) -> None:
    stop = ids_of(server)[2]
    assert len(ids_of(server, stop_token_ids=[stop])) == 3
    later = ids_of(server, stop_token_ids=[stop], min_tokens=8)
    assert len(later) >= 8
    assert stop not in later[:7]


def test_what_ends_an_output_is_as_asked(server: Server) -> None:
    text = choice_of(server, **GREEDY)["text"]
    stop = text[4:8]
    cut = choice_of(server, **GREEDY, stop=stop)
    assert (cut["text"], cut["stop_reason"]) == (text[: text.index(stop)], stop)
    kept = choice_of(server, **GREEDY, stop=stop, include_stop_str_in_output=True)
    assert kept["text"] == text[: text.index(stop)] + stop
    echoed = choice_of(server, **GREEDY, truncate_prompt_tokens=2, echo=True)
    assert echoed["text"].startswith(" her and")
    assert len(echoed["prompt_token_ids"]) == 2


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Emma", "Jane"]}, "sisters": {"enum": [0, 1, 2]}},
    "required": ["name", "sisters"],
    "additionalProperties": False,
}


def test_an_answer_that_must_be_json_is_what_its_schema_says(
    server: Server, stub: GenerateServiceStub
) -> None:
    sampling = {"n": 2, "seed": 3, "temperature": 0.8, "top_p": 0.95, "max_tokens": 200}
    compact = {"disable_any_whitespace": True}
    choices = choices_of(server, **sampling, structured_outputs={"json": SCHEMA, **compact})
    for choice in choices:
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
    form = StructuredOutputs(json=json.dumps(SCHEMA), **compact)
    request = GenerateRequest(
        prompt=PROMPT, sampling=WireParams(**sampling, structured_outputs=form)
    )
    response = stub.Generate(request, timeout=60)
    assert [choice.text for choice in response.choices] == [choice["text"] for choice in choices]


def test_an_answer_has_the_form_it_must_have(server: Server) -> None:
    assert choice_of(server, **GREEDY, guided_choice=["yes", "no"])["text"] in {"yes", "no"}
    assert re.fullmatch("[0-9]{3}", choice_of(server, **GREEDY, regex="[0-9]{3}")["text"])
    grammar = choice_of(server, **GREEDY, ebnf='root ::= "a" ("b" | "c") "d"')
    assert grammar["text"] in {"abd", "acd"}
    assert grammar["finish_reason"] == "stop"


def test_a_form_that_is_none_is_refused_by_name(server: Server, stub: GenerateServiceStub) -> None:
    answer = server.post({"prompt": PROMPT, "structured_outputs": {"regex": "(a"}})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "structured_outputs"
    request = GenerateRequest(
        prompt=PROMPT, sampling=WireParams(structured_outputs=StructuredOutputs(regex="(a"))
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(request, timeout=60)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert "structured_outputs" in caught.value.details()


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"n": 9}, "n: must be from 1 to 8, got 9"),
        ({"logprobs": 21}, "logprobs: must be from 0 to 20, got 21"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1 without echo, got 0"),
        ({"allowed_token_ids": [5000]}, "got 5000"),
        ({"min_tokens": 20}, "min_tokens: must be from 0 to max_tokens = 16, got 20"),
        ({"suffix": "x"}, "suffix: is not supported"),
    ],
    ids=str,
)
def test_a_value_out_of_range_tells_its_limit(
    server: Server, fields: dict[str, object], names: str
) -> None:
    answer = server.post({"prompt": PROMPT, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (400, "BadRequestError")
    assert error["param"] == next(iter(fields))
    assert names in error["message"]


def test_prompt_logprobs_of_ids_come_over_grpc(stub: GenerateServiceStub) -> None:
    sampling = WireParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    request = GenerateRequest(prompt_token_ids=TokenIds(ids=LONG_PROMPT), sampling=sampling)
    (choice,) = stub.Generate(request, timeout=60).choices
    assert [entry.token_id for entry in choice.prompt_logprobs] == LONG_PROMPT[1:]
    for entry in choice.prompt_logprobs:
        assert len(entry.top) == 2
        assert entry.logprob <= entry.top[0].logprob
        assert (entry.rank == 1) == (entry.top[0].token_id == entry.token_id)
