"""Both skins read the same request from the same fields."""

import json
from dataclasses import fields as fields_of
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ingress.wire.completion_body import parse_completion
from cluster.ingress.wire.grpc_messages import inference_request
from cluster.router.inference import InferenceRequest
from protos.v1 import generate_pb2 as pb
from qwen3_ray.errors import RequestError
from qwen3_ray.model.generation_config import SamplingDefaults
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from tests.cluster.parameters import PARAMETERS, TEXT, TOKEN_ID

SAMPLING = {
    **PARAMETERS,
    "bad_words": st.lists(TEXT, max_size=3),
    "structured_outputs": st.just({"regex": "a+"}) | st.just({"json": {"type": "object"}}),
}
OTHERS = {
    "model": TEXT,
    "echo": st.booleans(),
    "truncate_prompt_tokens": st.integers(-1, 2**31 - 1),
    "truncation_side": st.sampled_from(["left", "right"]),
    "priority": st.integers(-(2**31) + 1, 2**31 - 1),
    "cache_salt": TEXT,
}
PROMPT = TEXT | st.lists(TOKEN_ID, min_size=1, max_size=8)
FIELDS = st.fixed_dictionaries({"prompt": PROMPT}, optional={**SAMPLING, **OTHERS})
DEFAULTS: SamplingDefaults = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.05,
}


def over_http(fields: dict[str, Any], defaults: SamplingDefaults) -> InferenceRequest:
    body = json.dumps(fields).encode()  # which makes texts of ids that are keys
    (request,) = parse_completion(body, defaults).requests
    return request


def over_grpc(fields: dict[str, Any], defaults: SamplingDefaults) -> InferenceRequest:
    values = dict(fields)
    message = pb.GenerateRequest()
    for name in ("model", "priority", "cache_salt", "truncation_side"):
        if name in values:
            setattr(message, name, values.pop(name))
    prompt = values.pop("prompt")
    if isinstance(prompt, str):
        message.prompt = prompt
    else:
        message.prompt_token_ids.ids.extend(prompt)
    if "allowed_token_ids" in values:
        values["allowed_token_ids"] = pb.TokenIds(ids=values["allowed_token_ids"])
    if "structured_outputs" in values:
        form = dict(values["structured_outputs"])
        if "json" in form:
            form["json"] = json.dumps(form["json"])
        values["structured_outputs"] = pb.StructuredOutputs(**form)
    message.sampling.CopyFrom(pb.SamplingParams(**values))
    return inference_request(message, defaults)


def test_every_parameter_is_among_those_tried_below() -> None:
    resolved_later = {"bad_words_token_ids"}
    assert SAMPLING.keys() | resolved_later == {field.name for field in fields_of(SamplingParams)}
    made_here = {"prompt", "params", "request_id"}
    assert OTHERS.keys() | made_here == {field.name for field in fields_of(InferenceRequest)}


@given(fields=FIELDS, defaults=st.sampled_from([{}, DEFAULTS]))
def test_both_skins_read_the_same_request(
    fields: dict[str, Any], defaults: SamplingDefaults
) -> None:
    request = over_http(fields, defaults)
    assert over_grpc(fields, defaults) == request
    assert len(request.request_id) > 20


@given(fields=FIELDS)
def test_what_was_sent_is_what_is_read(fields: dict[str, Any]) -> None:
    request = over_http(fields, {})
    values = dict(fields)
    prompt = values.pop("prompt")
    assert request.prompt == (prompt if isinstance(prompt, str) else tuple(prompt))
    for name in values.keys() & OTHERS.keys():
        assert getattr(request, name) == values.pop(name)
    if "structured_outputs" in values:
        values["structured_outputs"] = StructuredOutputs(**values["structured_outputs"])
    assert request.params == SamplingParams(**values)


@given(fields=FIELDS)
def test_the_model_s_defaults_are_for_what_a_request_leaves_open(fields: dict[str, Any]) -> None:
    params = over_http(fields, DEFAULTS).params
    for name, default in DEFAULTS.items():
        assert getattr(params, name) == fields.get(name, default)


def test_defaults_are_those_of_the_python_api() -> None:
    assert over_http({"prompt": "x"}, {}).params == SamplingParams()
    assert inference_request(pb.GenerateRequest(prompt="x"), {}).params == SamplingParams()


def test_a_zero_is_not_an_unset_field() -> None:
    sampling = pb.SamplingParams(temperature=0, seed=0, top_k=0, min_p=0, logprobs=0)
    params = inference_request(
        pb.GenerateRequest(prompt="x", sampling=sampling), {**DEFAULTS, "temperature": 0.5}
    ).params
    assert (params.temperature, params.seed, params.top_k) == (0.0, 0, 0)
    assert (params.min_p, params.logprobs) == (0.0, 0)


def test_no_tokens_are_an_answer_only_behind_an_echo() -> None:
    def read(**sampling: object) -> InferenceRequest:
        message = pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(**sampling))
        return inference_request(message, {})

    assert read(max_tokens=0, echo=True).params.max_tokens == 0
    assert over_http({"prompt": "x", "max_tokens": 0, "echo": True}, {}).params.max_tokens == 0
    with pytest.raises(RequestError, match="max_tokens: must be at least 1 without echo, got 0"):
        read(max_tokens=0)


def test_a_grpc_request_needs_a_prompt() -> None:
    with pytest.raises(RequestError) as caught:
        inference_request(pb.GenerateRequest(), {})
    assert caught.value.param == "prompt"


def test_a_grpc_nan_is_refused() -> None:
    sampling = pb.SamplingParams(temperature=float("nan"))
    with pytest.raises(RequestError) as caught:
        inference_request(pb.GenerateRequest(prompt="x", sampling=sampling), {})
    assert caught.value.param == "temperature"


def test_requests_are_equal_without_their_ids() -> None:
    first, second = (InferenceRequest(prompt="x", params=SamplingParams()) for _ in range(2))
    assert first == second
    assert first.request_id != second.request_id
