"""Verified drafts against the run without any."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.request import TokenLogprobs
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_rig import KERNELS, Logits, make_sampler

VOCAB = 9
EOS = (8,)
LENGTH = 12
PROMPT = [1, 2, 3]

Run = tuple[list[int], list[TokenLogprobs], str | None]


def logits_after(token_ids: list[int], model_seed: int) -> Logits:
    """A model of nine tokens that looks back two."""
    rng = np.random.default_rng([model_seed, *token_ids[-2:]])
    return (2 * rng.normal(size=VOCAB)).astype(np.float32)


def step_of(
    sampler: Sampler, request: RequestState, drafts: list[int], model_seed: int
) -> tuple[tuple[int, ...], tuple[TokenLogprobs, ...], str | None]:
    request.draft_token_ids = drafts
    item = ScheduledRequest(request, 1 + len(drafts), len(drafts))
    known = request.token_ids
    rows = [logits_after([*known, *drafts[:i]], model_seed) for i in range(1 + len(drafts))]
    (result,) = sampler.sample(torch.from_numpy(np.stack(rows)), Step((item,)))
    assert len(result.token_ids) <= 1 + len(drafts)
    request.token_ids.extend(result.token_ids)
    if result.problem is None:
        request.num_computed_tokens += 1 + result.count_accepted(drafts)
        assert request.num_pending_tokens == 1
    return result.token_ids, result.logprobs, result.problem


def run(
    way: str, params: SamplingParams, model_seed: int, proposals: list[list[int]] | None = None
) -> Run:
    """Tokens, their logprobs, and the problem at their end, if one came."""
    sampler = make_sampler(way, VOCAB, EOS)
    request = RequestState("a", list(PROMPT), 3, params, num_computed_tokens=2)
    scored: list[TokenLogprobs] = []
    steps = iter(proposals or [])
    while request.num_output_tokens < LENGTH:
        room = LENGTH - request.num_output_tokens - 1
        drafts = next(steps, [])[:room]
        token_ids, logprobs, problem = step_of(sampler, request, drafts, model_seed)
        scored.extend(logprobs)
        if problem is not None:
            return request.token_ids, scored, problem
        assert token_ids, "a step without a problem gives a token"
    return request.token_ids, scored, None


IDS = st.integers(0, VOCAB - 1)
PARAMS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "top_k": st.sampled_from([0, 3]),
        "top_p": st.sampled_from([0.8, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.8]),
        "presence_penalty": st.sampled_from([0.0, -0.5]),
        "logit_bias": st.dictionaries(IDS, st.floats(-3, 3), max_size=3),
        "min_tokens": st.integers(0, LENGTH),
        "stop_token_ids": st.lists(IDS, max_size=2),
        "bad_words_token_ids": st.lists(st.lists(IDS, min_size=1, max_size=3), max_size=6),
        "allowed_token_ids": st.none() | st.lists(IDS, min_size=2, unique=True),
        "logprobs": st.sampled_from([None, 0, 3]),
        "seed": st.integers(0, 2**40),
    }
)


@pytest.mark.parametrize("way", KERNELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), fields=PARAMS, model_seed=st.integers(0, 2**32))
def test_drafts_change_nothing_but_the_number_of_steps(
    way: str, data: st.DataObject, fields: dict[str, Any], model_seed: int
) -> None:
    params = SamplingParams(max_tokens=LENGTH, **fields)
    plain = run(way, params, model_seed)
    output = plain[0][len(PROMPT) :]
    proposals: list[list[int]] = []
    place = 0
    while place < len(output):
        # Right as far as they go, mostly, and then anything.
        num_right = data.draw(st.integers(0, 5))
        wrong = data.draw(st.lists(IDS, max_size=2))
        proposals.append([*output[place : place + num_right], *wrong])
        place += num_right + 1
    assert run(way, params, model_seed, proposals) == plain


@pytest.mark.parametrize("way", KERNELS)
def test_right_drafts_are_all_taken_and_a_wrong_one_ends_them(way: str) -> None:
    params = SamplingParams(temperature=0, seed=0)
    output = run(way, params, 5)[0][len(PROMPT) :]
    for num_right in range(5):
        request = RequestState("a", list(PROMPT), 3, params, num_computed_tokens=2)
        wrong = (output[num_right] + 1) % VOCAB
        drafts = [*output[:num_right], wrong, output[num_right + 1]]
        token_ids, _, _ = step_of(make_sampler(way, VOCAB), request, drafts, 5)
        assert list(token_ids) == output[: num_right + 1]


@pytest.mark.parametrize("way", KERNELS)
def test_what_goes_wrong_after_right_drafts_goes_wrong_in_the_next_step(way: str) -> None:
    """The tokens before come as they do without drafts."""
    params = SamplingParams(temperature=0, seed=0)
    request = RequestState("a", [1], 1, params)
    request.draft_token_ids = [2, 3]
    logits = torch.zeros(3, VOCAB)
    logits[0, 2] = logits[1, 3] = 1
    logits[2, 0] = torch.nan
    sampler = make_sampler(way, VOCAB)
    (result,) = sampler.sample(logits, Step((ScheduledRequest(request, 3, 2),)))
    assert (result.token_ids, result.problem) == ((2, 3), None)
    request.token_ids += [2, 3]
    request.num_computed_tokens = 2
    (result,) = sampler.sample(logits[2:], Step((ScheduledRequest(request, 1),)))
    assert result.token_ids == ()
    assert result.problem is not None
