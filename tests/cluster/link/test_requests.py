from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from cluster.link.requests import request_of, submit_message
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED, SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs

INT32S = st.integers(0, 2**31 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
PARAMS = {
    "temperature": st.floats(0, 2, exclude_min=True),  # 0 wants n = 1
    "top_p": st.floats(0, 1, exclude_min=True),
    "top_k": st.integers(-1, 2**31 - 1),
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0, 10, exclude_min=True),
    "logit_bias": st.dictionaries(INT32S, st.floats(-100, 100), max_size=5),
    "max_tokens": st.integers(9, 2**31 - 1),
    "min_tokens": st.integers(0, 9),
    "n": st.integers(1, 8),
    "seed": st.integers(MIN_SEED, MAX_SEED),
    "stop": st.lists(TEXTS, max_size=16),
    "include_stop_str_in_output": st.booleans(),
    "stop_token_ids": st.lists(INT32S, max_size=8),
    "ignore_eos": st.booleans(),
    "bad_words_token_ids": st.lists(st.lists(INT32S, min_size=1, max_size=3), max_size=4),
    "allowed_token_ids": st.none() | st.lists(INT32S, min_size=1, max_size=8),
    "logprobs": st.none() | st.integers(0, 20),
    "prompt_logprobs": st.none() | st.integers(0, 20),
    "skip_special_tokens": st.booleans(),
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
        prompt_token_ids=st.lists(INT32S, max_size=20).map(tuple),
        params=st.builds(SamplingParams, **PARAMS),
        choice=st.integers(0, 7),
        output_token_ids=st.lists(INT32S, max_size=5).map(tuple),
        priority=st.integers(-(2**31), 2**31 - 1),
        cache_salt=st.text(st.characters(codec="utf-8"), max_size=20),
    )
)
def test_a_request_crosses_the_link_unchanged(request: GenerateRequest) -> None:
    message = submit_message(request)
    assert request_of(type(message).FromString(message.SerializeToString())) == request
