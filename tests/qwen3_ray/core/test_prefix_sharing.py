"""What requests that begin alike share, and what it saves."""

from itertools import pairwise

import pytest

from qwen3_ray.core.step import Sampled
from qwen3_ray.request import FinishReason, GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import Rig, make_request, oracle

SHORT = SamplingParams(max_tokens=3, ignore_eos=True)


def outputs_are_right(rig: Rig, requests: list[GenerateRequest]) -> bool:
    return all(
        rig.tokens[request.request_id] == oracle(request, rig.max_len)[0] for request in requests
    )


def alike(count: int, num_tokens: int, num_shared: int) -> list[GenerateRequest]:
    return [
        make_request(str(number), num_tokens, SHORT, like="prefix", num_shared=num_shared)
        for number in range(count)
    ]


@pytest.mark.parametrize("at_once", [False, True], ids=["one after another", "all at once"])
def test_fifty_requests_with_a_common_prefix_of_2000_tokens_save_95_percent_of_the_prefill(
    at_once: bool,
) -> None:
    rig = Rig(
        num_blocks=600,
        block_size=16,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        max_model_len=4_096,
    )
    requests = alike(50, 2_020, 2_000)
    for request in requests:
        rig.scheduler.add(request)
        if not at_once:
            rig.run()
    rig.run()
    assert outputs_are_right(rig, requests)
    num_prompt_tokens = 50 * 2_020
    num_output_tokens = 50 * 2  # the last one of each is never computed
    num_prefill_tokens = rig.model.num_computed_tokens - num_output_tokens
    assert num_prefill_tokens == num_prompt_tokens - 49 * 2_000
    assert num_prefill_tokens <= 0.05 * num_prompt_tokens
    assert sorted(rig.cached.values()) == [0] + 49 * [2_000]
    assert rig.scheduler.totals.num_prefix_queries == num_prompt_tokens
    assert rig.scheduler.totals.num_prefix_hits == 49 * 2_000


def test_requests_that_share_nothing_go_past_those_that_wait_for_a_prefix() -> None:
    rig = Rig(num_blocks=64, max_num_batched_tokens=32)
    first, second = alike(2, 50, 40)
    rig.scheduler.add(first)
    rig.step()
    rig.scheduler.add(second)
    rig.scheduler.add(make_request("other", 4, SHORT))
    rig.step()
    assert rig.first_token_steps["other"] == 2
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (2, 1)
    rig.run()
    assert rig.cached == {"0": 0, "1": 40, "other": 0}


def test_a_request_whose_prefix_is_given_up_computes_it_itself() -> None:
    rig = Rig(max_num_batched_tokens=16)
    first, second, third = requests = alike(3, 50, 40)
    for request in requests:
        rig.scheduler.add(request)
    rig.step()
    assert rig.scheduler.num_running == 1
    assert rig.scheduler.abort(first.request_id)
    rig.step()
    assert rig.model.computed[second.request_id] == [(16, 32)]
    rig.run()
    assert outputs_are_right(rig, [second, third])
    assert (rig.cached[second.request_id], rig.cached[third.request_id]) == (16, 40)


def test_choices_of_one_prompt_compute_it_once() -> None:
    for enable_prefix_caching in (True, False):
        rig = Rig(max_num_batched_tokens=64, enable_prefix_caching=enable_prefix_caching)
        params = SamplingParams(n=4, seed=1, max_tokens=5)
        prompt = make_request("", 30).prompt_token_ids
        for choice in range(4):
            rig.scheduler.add(
                GenerateRequest(
                    request_id=str(choice), prompt_token_ids=prompt, params=params, choice=choice
                )
            )
        rig.run()
        assert rig.cached == {"0": 0, "1": 28, "2": 28, "3": 28}


def test_a_second_turn_finds_the_output_of_the_first() -> None:
    rig = Rig()
    first = make_request("first", 10, SamplingParams(max_tokens=9, ignore_eos=True))
    rig.scheduler.add(first)
    rig.run()
    context = (*first.prompt_token_ids, *rig.tokens["first"])
    second = GenerateRequest(
        request_id="second", prompt_token_ids=(*context, 1, 2, 3), params=SHORT
    )
    rig.scheduler.add(second)
    rig.run()
    # The last token of an output is never computed: 18 of the 19 tokens are, in 4 full blocks.
    assert rig.cached["second"] == 16
    assert outputs_are_right(rig, [second])


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    rig = Rig(num_blocks=9, block_size=4, max_num_batched_tokens=32)
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    requests = [make_request(name, 7, params) for name in ("a", "b", "c")]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert rig.scheduler.totals.num_preemptions > 0
    restarts = [
        start
        for spans in rig.model.computed.values()
        for (_, end), (start, _) in pairwise(spans)
        if start != end
    ]
    assert any(start > 0 for start in restarts)
    assert set(rig.cached.values()) == {0}, "what a preemption finds is no saving"
    assert outputs_are_right(rig, requests)


def test_salts_keep_requests_apart() -> None:
    rig = Rig()
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        rig.scheduler.add(make_request(name, 20, SHORT, like="all", num_shared=20, cache_salt=salt))
        rig.run()
    assert rig.cached == {"a": 0, "b": 0, "c": 16}


def test_after_a_reset_nothing_is_found_and_running_requests_go_on() -> None:
    rig = Rig(max_num_batched_tokens=8)
    requests = alike(3, 30, 24)
    for request in requests[:2]:
        rig.scheduler.add(request)
    rig.step()
    rig.step()
    rig.scheduler.reset_prefix_cache()
    rig.scheduler.check_integrity()
    rig.run()
    # The second one had waited for the first one's prefix; it computes all of its own.
    assert rig.model.computed["1"][0][0] == 0
    assert rig.cached == {"0": 0, "1": 0}
    rig.scheduler.add(requests[2])
    rig.run()
    assert rig.cached["2"] == 24, "what was computed after the reset alone"
    assert outputs_are_right(rig, requests)


def test_a_failed_request_leaves_nothing_to_be_found() -> None:
    rig = Rig(max_num_batched_tokens=8)
    first, second = alike(2, 12, 12)
    rig.scheduler.add(first)
    rig.step()
    step = rig.scheduler.schedule()
    (delta,) = rig.scheduler.commit(step, [Sampled(problem="not finite")])
    assert (delta.finish_reason, delta.error) == (FinishReason.ERROR, "not finite")
    rig.scheduler.check_integrity()
    rig.scheduler.add(second)
    rig.run()
    assert rig.cached == {"1": 0}


def test_without_prefix_caching_requests_share_nothing() -> None:
    rig = Rig(enable_prefix_caching=False)
    requests = alike(3, 30, 24)
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert set(rig.cached.values()) == {0}
    assert outputs_are_right(rig, requests)
