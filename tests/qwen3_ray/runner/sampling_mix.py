"""64 requests with mixed parameters, in the middle of their outputs: what is timed."""

from __future__ import annotations

import random
from typing import Any

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.sampling_params import SamplingParams

NUM_REQUESTS = 64
PROMPT_LEN, CONTEXT_LEN = 128, 192
NUM_IDS = 150_000

_random = random.Random(0)


def _ids(count: int) -> list[int]:
    return [_random.randrange(NUM_IDS) for _ in range(count)]


MIX: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 5},
    {"temperature": 0, "min_tokens": 500, "stop_token_ids": _ids(3)},
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "presence_penalty": 1.5},
    {"temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1},
    {"top_k": 1000},
    {"min_p": 0.05},
    {"frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"top_p": 0.95, "logit_bias": dict.fromkeys(_ids(300), 1.5)},
    {"temperature": 0.9, "bad_words_token_ids": [_ids(1 + i % 3) for i in range(100)]},
    {"allowed_token_ids": _ids(20_000)},
    {"top_p": 0.9, "logprobs": 20},
    {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.05,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "logit_bias": dict.fromkeys(_ids(20), -2.0),
        "min_tokens": 500,
        "bad_words_token_ids": [_ids(2) for _ in range(20)],
        "logprobs": 3,
    },
)
"""Four requests of each."""


def mixed_requests() -> list[RequestState]:
    """Requests that decode: all but the last of their tokens are computed."""
    return [
        RequestState(
            str(index),
            _ids(CONTEXT_LEN),
            PROMPT_LEN,
            SamplingParams(seed=index, max_tokens=1000, **MIX[index % len(MIX)]),
            num_computed_tokens=CONTEXT_LEN - 1,
        )
        for index in range(NUM_REQUESTS)
    ]
