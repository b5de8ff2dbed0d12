"""What a step costs the scheduler."""

import time
from collections.abc import Callable

import pytest

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.core.step import Sampled
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import make_request


def decoding(num_requests: int) -> Scheduler:
    """A scheduler in which `num_requests` decode."""
    scheduler = Scheduler(
        kv=KVManager(num_blocks=num_requests * 2, block_size=64),
        max_num_seqs=num_requests,
        max_num_batched_tokens=num_requests * 4,
        max_model_len=10_000,
        eos_token_ids=frozenset(),
    )
    for number in range(num_requests):
        scheduler.add(make_request(str(number), 4, SamplingParams(max_tokens=None)))
    scheduler.commit(scheduler.schedule(), [Sampled((1,))] * num_requests)
    assert scheduler.num_running == num_requests
    return scheduler


def schedule_seconds(num_requests: int) -> float:
    scheduler = decoding(num_requests)

    def plan() -> None:
        assert scheduler.schedule().num_tokens == num_requests

    return min(timed(plan) for _ in range(20))


def abort_seconds(num_requests: int) -> float:
    scheduler = decoding(num_requests)

    def abort_all() -> None:
        assert all(scheduler.abort(str(number)) for number in range(num_requests))

    return timed(abort_all)


def timed(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def commit_seconds(num_requests: int) -> float:
    scheduler = decoding(num_requests)
    step, results = scheduler.schedule(), [Sampled((1,))] * num_requests
    return timed(lambda: scheduler.commit(step, results))


def parked_seconds(num_requests: int) -> float:
    """Steps of one prefill, for which all others wait."""
    scheduler = Scheduler(
        kv=KVManager(num_blocks=4_000, block_size=16),
        max_num_seqs=64,
        max_num_batched_tokens=64,
        max_model_len=10_000,
        eos_token_ids=frozenset(),
    )
    for number in range(num_requests):
        scheduler.add(make_request(str(number), 2_000, like="all", num_shared=2_000))
    scheduler.commit(scheduler.schedule(), [Sampled()])

    def compute() -> None:
        for _ in range(10):
            step = scheduler.schedule()
            assert len(step.scheduled) == 1
            scheduler.commit(step, [Sampled()])

    return timed(compute)


def placeless_seconds(num_requests: int, params: SamplingParams) -> float:
    """Steps in which some of the long prompts that wait get a place."""
    scheduler = Scheduler(
        kv=KVManager(num_blocks=20_000, block_size=16),
        max_num_seqs=64,
        max_num_batched_tokens=64,
        max_model_len=10_000,
        eos_token_ids=frozenset(),
    )
    for number in range(num_requests):
        scheduler.add(make_request(str(number), 200, params))

    def compute() -> None:
        for _ in range(20):
            step = scheduler.schedule()
            results = [Sampled((1,) if item.samples else ()) for item in step.scheduled]
            scheduler.commit(step, results)

    compute()  # all have been looked at once
    return timed(compute)


def test_a_step_of_256_requests_is_planned_in_a_millisecond() -> None:
    assert min(schedule_seconds(256) for _ in range(5)) <= 1e-3


def test_requests_that_wait_for_a_prefix_cost_nothing() -> None:
    few, many = (min(parked_seconds(count) for _ in range(3)) for count in (2, 200))
    assert many <= 2 * few


@pytest.mark.parametrize("prompt_logprobs", [None, 0])
def test_long_prompts_that_wait_for_a_place_cost_nothing(prompt_logprobs: int | None) -> None:
    params = SamplingParams(max_tokens=1, prompt_logprobs=prompt_logprobs)
    few, many = (min(placeless_seconds(n, params) for _ in range(3)) for n in (20, 400))
    assert many <= 2 * few


@pytest.mark.parametrize("seconds", [schedule_seconds, commit_seconds, abort_seconds])
def test_cost_grows_in_proportion_to_the_requests(seconds: Callable[[int], float]) -> None:
    # Processor time, and the best of several attempts: other work on the machine only adds to it.
    ratios = []
    for _ in range(5):
        best = {n: min(seconds(n) for _ in range(3)) for n in (256, 1_024)}
        ratios.append(best[1_024] / best[256])
        if ratios[-1] <= 6:
            return
    pytest.fail(f"1,024 requests cost {ratios} times as much as 256")
