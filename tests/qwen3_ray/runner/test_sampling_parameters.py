"""Every parameter against plain Python, in the kernel and by sorting."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context, next_token
from tests.qwen3_ray.runner.sampling_rig import (
    DEVICES,
    Logits,
    logit_rows,
    make_sampler,
    sample_one,
)

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
    """The known ids are the same with logits beyond them, which count for nothing."""
    expected = next_token([float(x) for x in logits], context)
    assume(expected != -1)
    padded = np.append(logits, np.float32([np.nan, 1e38]))
    for way in DEVICES:
        sampled = sample_one(make_sampler(way, len(logits), context.eos), padded, context)
        if expected is None:
            assert sampled.problem is not None
            assert "no token is allowed" in sampled.problem
        else:
            assert sampled.token_ids == (expected,), way
        assert not sampled.ended


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
@settings(max_examples=60, deadline=None)
@given(data=st.data(), logits=logit_rows())
def test_a_parameter_does_what_its_definition_says(
    names: tuple[str, ...], data: st.DataObject, logits: Logits
) -> None:
    check(logits, data.draw(contexts(*names)))
    greedy = data.draw(contexts(*{*names, "temperature"}))
    check(logits, greedy)
