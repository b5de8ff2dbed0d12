from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from cluster.link.requests import request_of, submit_message
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from tests.cluster.parameters import PARAMETERS, TOKEN_ID

OPTIONAL = ("allowed_token_ids", "logprobs", "prompt_logprobs")
PARAMS = {
    **PARAMETERS,
    **{name: st.none() | PARAMETERS[name] for name in OPTIONAL},
    "bad_words_token_ids": st.lists(st.lists(TOKEN_ID, min_size=1, max_size=3), max_size=4),
    "structured_outputs": st.sampled_from(
        [
            None,
            StructuredOutputs(json='{"type":"object"}'),
            StructuredOutputs(regex="a+"),
            StructuredOutputs(choice=("yes", "no")),
            StructuredOutputs(grammar='root ::= "a"'),
            StructuredOutputs(json_object=True),
        ]
    ),
}
RESOLVED_BEFORE = {"bad_words"}


def test_every_parameter_is_among_those_tried_below() -> None:
    assert PARAMS.keys() | RESOLVED_BEFORE == {field.name for field in fields(SamplingParams)}


@given(
    request=st.builds(
        GenerateRequest,
        request_id=st.text(st.characters(codec="utf-8")),
        prompt_token_ids=st.lists(TOKEN_ID, max_size=20).map(tuple),
        params=st.builds(SamplingParams, **PARAMS),
        choice=st.integers(0, 7),
        output_token_ids=st.lists(TOKEN_ID, max_size=5).map(tuple),
        priority=st.integers(-(2**31), 2**31 - 1),
        cache_salt=st.text(st.characters(codec="utf-8"), max_size=20),
    )
)
def test_a_request_crosses_the_link_unchanged(request: GenerateRequest) -> None:
    message = submit_message(request)
    assert request_of(type(message).FromString(message.SerializeToString())) == request


def test_the_form_of_all_answers_to_a_prompt_is_checked_once() -> None:
    params = SamplingParams(n=2, structured_outputs=StructuredOutputs(json={"const": "once"}))
    messages = [
        submit_message(
            GenerateRequest(request_id="r", prompt_token_ids=(1,), params=params, choice=choice)
        )
        for choice in range(2)
    ]
    first, second = (request_of(message).params.structured_outputs for message in messages)
    assert first == params.structured_outputs
    assert first is second
