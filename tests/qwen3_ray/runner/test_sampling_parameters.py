"""Every parameter against plain Python, in the kernel and by sorting."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import TOO_CLOSE, Context, next_token
from tests.qwen3_ray.runner.sampling_rig import (
    KERNELS,
    Logits,
    logit_rows,
    make_request,
    make_sampler,
    sample,
)

NUM_SEEDS = 6
IDS = st.integers(0, 60)
"""Likely to be met by logits and by each other; not all are known to short rows."""
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 1e-300, 1e-3, 0.3, 1.0, 2.0]),
    "top_k": st.one_of(st.integers(-1, 8), st.integers(-1, 800)),
    "top_p": st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    "min_p": st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0]),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.sampled_from([1.0, 0.5, 1.2, 3.0, 1e-300, 1e300]),
    "logit_bias": st.dictionaries(IDS, st.floats(-120, 120), max_size=8),
    "min_tokens": st.integers(0, 8),
    "stop_token_ids": st.lists(IDS, max_size=4),
    "bad_words_token_ids": st.lists(
        st.lists(st.integers(0, 6), min_size=1, max_size=3), max_size=9
    ),
    "allowed_token_ids": st.none() | st.lists(IDS, min_size=1),
    "seed": st.integers(-(2**63), 2**63 - 1),
}
TOKENS = st.lists(st.integers(0, 6), max_size=12)


@st.composite
def contexts(draw: st.DrawFn, *names: str) -> Context:
    """With random values of these parameters."""
    return Context(
        SamplingParams(max_tokens=20, **{name: draw(FIELDS[name]) for name in names}),
        prompt=[7, *draw(TOKENS)],
        output=draw(TOKENS),
        eos=draw(st.lists(st.integers(0, 6), max_size=2)),
        choice=draw(st.integers(0, 7)),
    )


def check(logits: Logits, context: Context) -> None:
    """Draw with a few seeds; logits beyond the known ids count for nothing."""
    seed = context.params.seed or 0
    contexts = [
        replace(context, params=replace(context.params, seed=(seed >> 1) + i))
        for i in range(NUM_SEEDS)
    ]
    values = [float(x) for x in logits]
    expected = [next_token(values, one) for one in contexts]
    padded = np.append(logits, np.float32([np.nan, 1e38]))
    for way in KERNELS:
        sampler = make_sampler(way, len(logits), context.eos)
        requests = [make_request(one) for one in contexts]
        results = sample(sampler, np.tile(padded, (NUM_SEEDS, 1)), requests)
        for result, token_id in zip(results, expected, strict=True):
            if token_id is None:
                assert "no token is allowed" in (result.problem or "")
            elif token_id != TOO_CLOSE:
                assert result.token_ids == (token_id,), way
            assert not result.ended


@pytest.mark.parametrize(
    "names",
    [
        ("temperature", "seed"),
        ("top_k",),
        ("top_p",),
        ("min_p",),
        ("temperature", "top_k", "top_p", "min_p"),
        ("presence_penalty",),
        ("frequency_penalty",),
        ("repetition_penalty",),
        ("logit_bias",),
        ("min_tokens", "stop_token_ids"),
        ("bad_words_token_ids",),
        ("allowed_token_ids",),
        tuple(FIELDS),
    ],
    ids="+".join,
)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), logits=logit_rows())
def test_a_parameter_does_what_its_definition_says(
    names: tuple[str, ...], data: st.DataObject, logits: Logits
) -> None:
    check(logits, data.draw(contexts(*names)))
    check(logits, data.draw(contexts(*dict.fromkeys((*names, "temperature")))))
