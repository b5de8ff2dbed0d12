"""Both skins read the same request from the same fields."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ingress.wire import MAX_PROMPTS, Completion, inference_request, parse_completion
from cluster.router.inference import InferenceRequest
from protos.v1 import generate_pb2 as pb
from qwen3_ray.errors import RequestError
from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED, SamplingParams

INT32 = st.integers(1, 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FIELDS = st.fixed_dictionaries(
    {"prompt": TEXT | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)},
    optional={
        "model": TEXT,
        "temperature": st.floats(0, 2) | st.integers(0, 2),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(-1, 2**31 - 1),
        "max_tokens": INT32,
        "seed": st.integers(MIN_SEED, MAX_SEED),
        "stop": st.lists(TEXT, max_size=4),
        "stop_token_ids": st.lists(INT32, max_size=4),
        "ignore_eos": st.booleans(),
    },
)


def parse(**fields: object) -> Completion:
    return parse_completion(json.dumps(fields).encode())


def to_proto(fields: dict[str, object]) -> pb.GenerateRequest:
    values = dict(fields)
    message = pb.GenerateRequest(model=str(values.pop("model", "")))
    prompt = values.pop("prompt")
    if isinstance(prompt, str):
        message.prompt = prompt
    else:
        message.prompt_token_ids.ids.extend(prompt)
    message.sampling.CopyFrom(pb.SamplingParams(**values))
    return message


@given(fields=FIELDS)
def test_both_skins_read_the_same_request(fields: dict[str, object]) -> None:
    over_http = parse(**fields).requests
    over_grpc = inference_request(to_proto(fields))
    assert over_http == (over_grpc,)
    assert len(over_grpc.request_id) > 20


@given(fields=FIELDS)
def test_what_was_sent_is_what_is_read(fields: dict[str, object]) -> None:
    request = parse(**fields).requests[0]
    values = dict(fields)
    prompt = values.pop("prompt")
    assert request.prompt == (prompt if isinstance(prompt, str) else tuple(prompt))
    assert request.model == values.pop("model", "")
    assert request.params == SamplingParams(**values)


def test_defaults_are_those_of_the_python_api() -> None:
    assert parse(prompt="x").requests[0].params == SamplingParams()
    assert inference_request(pb.GenerateRequest(prompt="x")).params == SamplingParams()


def test_null_means_the_default() -> None:
    nulls = dict.fromkeys(
        ("model", "temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "stream")
    )
    nulls |= dict.fromkeys(("stream_options", "logprobs", "n", "suffix", "user", "ignore_eos"))
    assert parse(prompt="x", **nulls).requests == parse(prompt="x").requests


def test_a_zero_is_not_an_unset_field() -> None:
    sampling = pb.SamplingParams(temperature=0, seed=0, top_k=0)
    params = inference_request(pb.GenerateRequest(prompt="x", sampling=sampling)).params
    assert (params.temperature, params.seed, params.top_k) == (0.0, 0, 0)
    with pytest.raises(RequestError, match="max_tokens"):
        inference_request(pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(max_tokens=0)))


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
        parse_completion(body)
    assert caught.value.param is None


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse_completion(b'{"prompt": "x", "temperature": 1e999}')
    assert caught.value.param == "temperature"


def test_a_grpc_request_needs_a_prompt() -> None:
    with pytest.raises(RequestError) as caught:
        inference_request(pb.GenerateRequest())
    assert caught.value.param == "prompt"


def test_a_grpc_nan_is_refused() -> None:
    sampling = pb.SamplingParams(temperature=float("nan"))
    with pytest.raises(RequestError) as caught:
        inference_request(pb.GenerateRequest(prompt="x", sampling=sampling))
    assert caught.value.param == "temperature"


def test_requests_are_equal_without_their_ids() -> None:
    first, second = (InferenceRequest(prompt="x", params=SamplingParams()) for _ in range(2))
    assert first == second
    assert first.request_id != second.request_id
