"""What the results of a step do to requests, one rule at a time."""

from dataclasses import replace

import pytest

from qwen3_ray.core.step import Sampled
from qwen3_ray.request import FinishReason, TokenLogprobs
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import (
    EOS,
    Rig,
    make_request,
    oracle,
    oracle_prompt_logprobs,
)

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_tokens_after_the_one_that_ends_an_output_are_dropped() -> None:
    rig = Rig()
    logprobs = tuple(TokenLogprobs(token_id=i, logprob=-1.0, rank=1) for i in (3, 9, 5))
    params = SamplingParams(stop_token_ids=[9], logprobs=0)
    rig.scheduler.add(make_request("a", 3, params))
    (delta,) = rig.scheduler.commit(rig.scheduler.schedule(), [Sampled((3, 9, 5), logprobs)])
    assert (delta.token_ids, delta.logprobs) == ((3, 9), logprobs[:2])
    assert (delta.finish_reason, delta.stop_reason) == (STOP, 9)
    assert not rig.scheduler.has_unfinished


@pytest.mark.parametrize(
    ("sampled", "token_ids", "reason"),
    [
        (Sampled(ended=True), (), STOP),
        (Sampled((3, 4), ended=True), (3, 4), STOP),
        (Sampled((3, 4, 5), ended=True), (3, 4, 5), LENGTH),
    ],
    ids=["no token", "after drafts", "at max_tokens"],
)
def test_an_output_whose_form_is_complete_ends(
    sampled: Sampled, token_ids: tuple[int, ...], reason: FinishReason
) -> None:
    rig = Rig()
    rig.scheduler.add(make_request("a", 3, SamplingParams(max_tokens=3)))
    (delta,) = rig.scheduler.commit(rig.scheduler.schedule(), [sampled])
    assert (delta.token_ids, delta.finish_reason) == (token_ids, reason)
    assert not rig.scheduler.has_unfinished
    rig.scheduler.check_integrity()


@pytest.mark.parametrize(("min_tokens", "num_tokens"), [(0, 1), (1, 2), (2, 3), (3, 4)])
@pytest.mark.parametrize("stop_token_ids", [[], [EOS]], ids=["EOS", "stop token"])
def test_no_token_ends_an_output_before_its_least_length(
    min_tokens: int, num_tokens: int, stop_token_ids: list[int]
) -> None:
    rig = Rig()
    params = SamplingParams(
        min_tokens=min_tokens, stop_token_ids=stop_token_ids, ignore_eos=bool(stop_token_ids)
    )
    rig.scheduler.add(make_request("a", 3, params))
    for count in range(1, num_tokens + 1):
        (delta,) = rig.scheduler.commit(rig.scheduler.schedule(), [Sampled((EOS,))])
        assert delta.finish_reason == (STOP if count == num_tokens else None)


def test_no_output_is_wanted_of_a_prompt_that_is_only_scored() -> None:
    rig = Rig(max_num_batched_tokens=8)
    request = make_request("a", 20, SamplingParams(max_tokens=0, prompt_logprobs=0))
    rig.scheduler.add(request)
    rig.run()
    assert rig.num_steps == 3
    assert (rig.tokens["a"], rig.ends["a"]) == ([], (LENGTH, None))
    assert rig.prompt_logprobs["a"] == oracle_prompt_logprobs(request)


def test_prompt_logprobs_come_with_the_chunk_that_computes_them() -> None:
    rig = Rig(max_num_batched_tokens=8)
    rig.scheduler.add(make_request("a", 20, SamplingParams(max_tokens=2, prompt_logprobs=0)))
    counts = []
    while rig.scheduler.has_unfinished:
        rig.step()
        counts.append((len(rig.prompt_logprobs["a"]), len(rig.tokens["a"])))
    assert counts == [(8, 0), (16, 0), (19, 1), (19, 2)]


def test_prompt_logprobs_are_given_out_once_although_their_request_is_preempted() -> None:
    rig = Rig(num_blocks=7, max_num_batched_tokens=32)
    params = SamplingParams(max_tokens=12, prompt_logprobs=0, ignore_eos=True)
    requests = [make_request(name, 9, params) for name in ("a", "b")]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert rig.scheduler.totals.num_preemptions > 0
    for request in requests:
        assert rig.prompt_logprobs[request.request_id] == oracle_prompt_logprobs(request)
        assert rig.tokens[request.request_id] == oracle(request, rig.max_len)[0]


def test_a_scored_prompt_is_computed_although_the_cache_has_it() -> None:
    rig = Rig()
    for name, params in (("a", SamplingParams()), ("b", SamplingParams(prompt_logprobs=0))):
        request = make_request(name, 12, params, like="all", num_shared=12)
        rig.scheduler.add(request)
        rig.run()
    assert rig.cached == {"a": 0, "b": 0}
    assert rig.prompt_logprobs["b"] == oracle_prompt_logprobs(request)
    assert rig.scheduler.totals.num_prefix_queries == 12, "one that may find nothing does not look"


def test_a_resume_goes_on_after_its_output_and_counts_it() -> None:
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    rig = Rig()
    whole = make_request("a", 6, params)
    part = make_request("a", 6, params, num_known=4)
    rig.scheduler.add(part)
    rig.run()
    output, end = oracle(whole, rig.max_len)
    assert [*part.output_token_ids, *rig.tokens["a"]] == output
    assert rig.ends["a"] == end
    assert rig.model.computed["a"][0] == (0, 10)


def test_the_cached_tokens_of_a_resume_are_those_of_its_prompt() -> None:
    rig = Rig()
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    rig.scheduler.add(make_request("a", 6, params))
    rig.run()
    rig.scheduler.add(make_request("a", 6, params, num_known=10))
    rig.cached.clear()
    rig.ends.clear()
    rig.run()
    assert rig.model.computed["a"][-10][0] == 12
    assert rig.cached["a"] == 6
    assert (rig.scheduler.totals.num_prefix_queries, rig.scheduler.totals.num_prefix_hits) == (
        12,
        6,
    )


@pytest.mark.parametrize(
    ("params", "end"),
    [
        (SamplingParams(max_tokens=2), (LENGTH, None)),
        (SamplingParams(max_tokens=5, stop_token_ids=[9]), (STOP, 9)),
    ],
    ids=["length", "stop"],
)
def test_a_resume_that_has_ended_already_is_told_so_and_computes_nothing(
    params: SamplingParams, end: tuple[FinishReason, int | None]
) -> None:
    rig = Rig()
    request = replace(make_request("a", 6, params), output_token_ids=(8, 9))
    rig.scheduler.add(request)
    assert rig.scheduler.has_unfinished
    step = rig.step()
    assert step.scheduled == ()
    assert (rig.tokens["a"], rig.ends["a"], rig.cached["a"]) == ([], end, 0)
    assert not rig.scheduler.has_unfinished
    rig.scheduler.add(request)
    assert rig.scheduler.abort("a")
    assert not rig.scheduler.has_unfinished


def test_a_resume_that_fills_the_context_has_ended() -> None:
    rig = Rig(max_model_len=10)
    request = make_request("a", 6, SamplingParams(max_tokens=None, ignore_eos=True), num_known=4)
    rig.scheduler.add(request)
    rig.run()
    assert rig.ends["a"] == (LENGTH, None)
    assert rig.model.computed == {}
