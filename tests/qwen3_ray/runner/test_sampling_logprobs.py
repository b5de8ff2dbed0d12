"""Logprobs of sampled and of prompt tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.request import TokenLogprobs
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context, logprobs
from tests.qwen3_ray.runner.sampling_rig import (
    ALL_KERNELS,
    KERNELS,
    Logits,
    logit_rows,
    make_sampler,
    sample_one,
)

WAYS = pytest.mark.parametrize("way", ALL_KERNELS)
LOWEST = float(np.finfo(np.float32).min)


def check(actual: TokenLogprobs, expected: TokenLogprobs) -> None:
    """Equal but for the last bit of a float32; what is inside `top` is there identically."""
    assert (actual.token_id, actual.rank) == (expected.token_id, expected.rank)
    assert [token_id for token_id, _ in actual.top] == [token_id for token_id, _ in expected.top]
    pairs = [
        (actual.logprob, expected.logprob),
        *((mine, theirs) for (_, mine), (_, theirs) in zip(actual.top, expected.top, strict=True)),
    ]
    for mine, theirs in pairs:
        assert mine == pytest.approx(theirs, rel=2e-7, abs=1e-12)
        assert mine == float(np.float32(mine))
    assert dict(actual.top).get(actual.token_id, actual.logprob) == actual.logprob
    assert (actual.rank <= len(actual.top)) == (actual.token_id in dict(actual.top))


@pytest.mark.parametrize("way", KERNELS)
@settings(max_examples=80, deadline=None)
@given(
    logits=logit_rows(),
    num_top=st.integers(0, 20),
    temperature=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 1000),
)
def test_logprobs_are_the_model_s_own_whatever_the_parameters(
    way: str, logits: Logits, num_top: int, temperature: float, seed: int
) -> None:
    params = SamplingParams(
        temperature=temperature,
        seed=seed,
        logprobs=num_top,
        top_k=5,
        logit_bias={0: 9.0, 5: -9.0},
        repetition_penalty=1.5,
        stop_token_ids=[2],
        min_tokens=1,
        bad_words_token_ids=[[1]],
    )
    padded = np.append(logits, np.float32([1e38, np.nan]))
    sampled = sample_one(make_sampler(way, len(logits)), padded, Context(params))
    if sampled.problem is not None:
        assert len(logits) < 3  # ids 1 and 2 are banned, and the draw needs one
        return
    (actual,) = sampled.logprobs
    assert actual.token_id == sampled.token_ids[0]
    check(actual, logprobs([float(x) for x in logits], actual.token_id, num_top))


@WAYS
def test_only_what_was_asked_for_is_reported(way: str) -> None:
    sampler, logits = make_sampler(way, 4), np.arange(4, dtype=np.float32)
    assert sample_one(sampler, logits, Context(SamplingParams(temperature=0))).logprobs == ()
    without_top = sample_one(sampler, logits, Context(SamplingParams(temperature=0, logprobs=0)))
    assert without_top.logprobs[0].top == ()
    assert without_top.logprobs[0].logprob == pytest.approx(
        -math.log(sum(map(math.exp, (0, -1, -2, -3))))
    )
    more_than_there_are = Context(SamplingParams(temperature=0, logprobs=9))
    assert len(sample_one(sampler, logits, more_than_there_are).logprobs[0].top) == 4


def run_chunks(
    way: str, logits: Logits, request: RequestState, sizes: list[int], num_known: int
) -> list[Sampled]:
    """What steps of `sizes` tokens give; row `p` of `logits` is what position `p` predicts."""
    sampler, results = make_sampler(way, num_known), []
    for size in sizes:
        item = ScheduledRequest(request, size)
        rows = torch.from_numpy(logits[list(item.logits_positions)])
        (result,) = sampler.sample(rows, Step((item,)))
        results.append(result)
        request.num_computed_tokens += size
        request.num_prompt_logprobs += len(result.prompt_logprobs)
    return results


@WAYS
@pytest.mark.parametrize("sizes", [[6], [1, 5], [2, 2, 2], [1] * 6, [5, 1]], ids=str)
def test_prompt_logprobs_are_those_of_each_token_after_the_first(
    way: str, sizes: list[int]
) -> None:
    prompt = [5, 0, 3, 299, 3, 7]
    logits = np.random.default_rng(0).normal(size=(6, 310)).astype(np.float32)
    params = SamplingParams(temperature=0, seed=0, prompt_logprobs=2, logprobs=1)
    request = RequestState("a", list(prompt), 6, params)
    results = run_chunks(way, logits, request, sizes, num_known=300)
    scored = [entry for result in results for entry in result.prompt_logprobs]
    assert [entry.token_id for entry in scored] == prompt[1:]
    for position, entry in enumerate(scored):
        check(entry, logprobs([float(x) for x in logits[position, :300]], entry.token_id, 2))
    *before, last = results
    assert all(result.token_ids == () and result.logprobs == () for result in before)
    assert last.token_ids == (int(logits[5, :300].argmax()),)
    check(last.logprobs[0], logprobs([float(x) for x in logits[5, :300]], last.token_ids[0], 1))


@WAYS
def test_a_prompt_token_that_the_tokenizer_does_not_know_comes_last(way: str) -> None:
    request = RequestState("a", [1, 7, 2], 3, SamplingParams(seed=0, prompt_logprobs=1))
    (result,) = run_chunks(way, np.zeros((3, 9), np.float32), request, [3], num_known=5)
    unknown, known = result.prompt_logprobs
    assert (unknown.token_id, unknown.logprob, unknown.rank) == (7, LOWEST, 6)
    assert (known.token_id, known.rank) == (2, 3)


@WAYS
def test_a_prompt_row_that_is_not_finite_fails_its_request_alone(way: str) -> None:
    params = SamplingParams(seed=0, prompt_logprobs=0)
    requests = [RequestState(name, [1, 2, 3], 3, params) for name in "ab"]
    logits = torch.zeros(6, 5)
    logits[1, 4] = torch.nan  # of the first request's second token
    step = Step(tuple(ScheduledRequest(request, 3) for request in requests))
    broken, fine = make_sampler(way, 5).sample(logits, step)
    assert broken.problem is not None
    assert (broken.token_ids, broken.prompt_logprobs) == ((), ())
    assert fine.problem is None
    assert len(fine.prompt_logprobs) == 2
