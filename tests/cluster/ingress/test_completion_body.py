"""What the body of a completion may hold, and how its errors are told."""

import json
import re
from dataclasses import replace

import pytest

from cluster.ingress.wire.completion_body import (
    MAX_PROMPTS,
    Completion,
    CompletionBody,
    parse_completion,
)
from qwen3_ray.errors import RequestError


def parse(**fields: object) -> Completion:
    return parse_completion(json.dumps(fields).encode(), {})


def test_null_means_the_default() -> None:
    names = CompletionBody.model_fields.keys() - {"prompt"}
    nulls = dict.fromkeys([*names, "suffix", "user", "best_of"])
    assert parse(prompt="x", **nulls).requests == parse(prompt="x").requests
    assert parse(prompt="x", **nulls).unknown_fields == ()


def test_one_stop_string_needs_no_list() -> None:
    assert parse(prompt="x", stop="END").requests[0].params.stop_strings == ("END",)


def test_several_prompts_share_one_seed_and_have_ids_of_their_own() -> None:
    completion = parse(prompt=["a", [1, 2], "b"], max_tokens=3)
    assert [request.prompt for request in completion.requests] == ["a", (1, 2), "b"]
    assert len({request.params.seed for request in completion.requests}) == 1
    assert completion.requests[0].params.seed is not None
    ids = [request.request_id for request in completion.requests]
    assert ids == [f"{completion.id}-{index}" for index in range(3)]


def test_one_prompt_takes_the_id_of_its_answer() -> None:
    for prompt in ("a", ["a"], [1, 2], [[1, 2]]):
        completion = parse(prompt=prompt)
        assert [request.request_id for request in completion.requests] == [completion.id]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1.0, 2.0]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", None]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"model": 5}, "model"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "lucky"}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x" * 65]}, "stop"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"min_p": -0.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias"),
        ({"logit_bias": {"": 1.0}}, "logit_bias"),
        ({"logit_bias": {"-": 1.0}}, "logit_bias"),
        ({"logit_bias": {"1.5": 1.0}}, "logit_bias"),
        ({"logit_bias": {"-5": 1.0}}, "logit_bias"),
        ({"logit_bias": {"\u00b2": 1.0}}, "logit_bias"),
        ({"logit_bias": {"5": "x"}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1.0}}, "logit_bias"),
        ({"logit_bias": {str(number): 1.0 for number in range(301)}}, "logit_bias"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"bad_words": "x"}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"echo": 1}, "echo"),
        ({"truncation_side": "top"}, "truncation_side"),
        ({"priority": 2**31}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"extra_key": ""}, "extra_key"),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
    ],
    ids=str,
)
def test_a_bad_field_is_named(fields: dict[str, object], param: str) -> None:
    fields = fields if "prompt" in fields or not fields else {"prompt": "x", **fields}
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"text"',
        b'{"prompt": "x",}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "unknown": Infinity}',
        b'{"prompt": "x", "unknown": -Infinity}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "x", "unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "x", "seed": ' + b"1" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_completion(body, {})
    assert caught.value.param is None


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse_completion(b'{"prompt": "x", "temperature": 1e999}', {})
    assert caught.value.param == "temperature"


def test_a_message_tells_the_limit_and_the_value() -> None:
    for fields, message in (
        ({"n": 9}, "n: must be from 1 to 8, got 9"),
        ({"min_tokens": 17}, "min_tokens: must be from 0 to max_tokens = 16, got 17"),
        ({"min_p": 1.5}, "min_p: must be a finite number from 0 to 1, got 1.5"),
        ({"logit_bias": {"a": 1}}, "logit_bias: each key must be a token id, got 'a'"),
        ({"cache_salt": "x" * 1025}, "cache_salt: may have 1024 characters, got 1025"),
    ):
        with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
            parse(prompt="x", **fields)


def test_other_servers_names_are_understood() -> None:
    assert parse(prompt="x", no_stop_trim=True).requests[0].params.include_stop_str_in_output
    assert parse(prompt="x", extra_key="me").requests[0].cache_salt == "me"
    assert parse(prompt="x", extra_key="me", cache_salt="you").requests[0].cache_salt == "you"


def test_every_prompt_is_asked_in_the_same_way() -> None:
    requests = parse(prompt=["a", "b"], n=2, echo=True, priority=3, cache_salt="s").requests
    first, second = requests
    assert replace(second, prompt="a") == first
    assert (first.params.n, first.echo, first.priority, first.cache_salt) == (2, True, 3, "s")
