"""Values of those sampling parameters that are the same wherever a request passes."""

from typing import Any

from hypothesis import strategies as st

from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED

TOKEN_ID = st.integers(0, 2**31 - 1)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2, exclude_min=True) | st.integers(1, 2),  # 0 wants n = 1
    "top_p": st.floats(0, 1, exclude_min=True),
    "top_k": st.integers(-1, 2**31 - 1),
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0, 10, exclude_min=True),
    "logit_bias": st.dictionaries(TOKEN_ID, st.floats(-100, 100), max_size=5),
    "max_tokens": st.integers(9, 2**31 - 1),
    "min_tokens": st.integers(0, 9),
    "n": st.integers(1, 8),
    "seed": st.integers(MIN_SEED, MAX_SEED),
    "stop": st.lists(TEXT, max_size=16),
    "include_stop_str_in_output": st.booleans(),
    "stop_token_ids": st.lists(TOKEN_ID, max_size=8),
    "ignore_eos": st.booleans(),
    "allowed_token_ids": st.lists(TOKEN_ID, min_size=1, max_size=8),
    "logprobs": st.integers(0, 20),
    "prompt_logprobs": st.integers(0, 20),
    "skip_special_tokens": st.booleans(),
}
