from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from cluster.link.requests import request_of, submit_message
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED, SamplingParams

PARAMS = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1, exclude_min=True),
    "top_k": st.integers(-1, 2**31 - 1),
    "max_tokens": st.integers(1, 2**31 - 1),
    "seed": st.integers(MIN_SEED, MAX_SEED),
    "stop": st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=64), max_size=16),
    "stop_token_ids": st.lists(st.integers(0, 2**31 - 1), max_size=8),
    "ignore_eos": st.booleans(),
}


def test_every_parameter_is_among_those_tried_below() -> None:
    assert PARAMS.keys() == {field.name for field in fields(SamplingParams)}


@given(
    request_id=st.text(st.characters(codec="utf-8")),
    prompt=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    params=st.builds(SamplingParams, **PARAMS),
)
def test_a_request_crosses_the_link_unchanged(
    request_id: str, prompt: list[int], params: SamplingParams
) -> None:
    request = GenerateRequest(request_id=request_id, prompt_token_ids=tuple(prompt), params=params)
    message = submit_message(request_id, prompt, params)
    assert request_of(type(message).FromString(message.SerializeToString())) == request
