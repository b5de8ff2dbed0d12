"""What sampling may cost, against the product that makes its logits."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.runner import numba_sampling
from tests.qwen3_ray.runner.sampling_mix import NUM_REQUESTS, mixed_requests
from tests.qwen3_ray.runner.sampling_rig import make_sampler

HIDDEN_SIZE, VOCAB_SIZE, NUM_KNOWN_IDS = 1024, 151_936, 151_669
"""Of the 0.6B shape."""
PART = 16
"""The product is timed with this part of the vocabulary."""
MAX_SHARE = 0.12
"""Of the product's time, which is a part of the step's: about twice of what was measured."""


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Whatever else the machine does, the time that this thread has of it is what is compared."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def least_s(call: Callable[[], object], count: int) -> float:
    """Processor seconds of the fastest of `count` calls."""
    times = []
    for _ in range(count):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.usefixtures("_one_thread")
def test_mixed_requests_are_sampled_in_a_small_part_of_a_step() -> None:
    """And a slow path that one kind of request takes would show."""
    requests = mixed_requests()
    step = Step(tuple(ScheduledRequest(request, 1) for request in requests))
    logits = torch.randn(NUM_REQUESTS, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    sampler = make_sampler("kernel", NUM_KNOWN_IDS, eos=[151_643])
    sampled = sampler.sample(logits, step)
    assert all(result.token_ids for result in sampled)
    sampling_s = least_s(lambda: sampler.sample(logits, step), 5)
    head, hidden = torch.randn(VOCAB_SIZE // PART, HIDDEN_SIZE), torch.randn(64, HIDDEN_SIZE)
    product_s = PART * least_s(lambda: hidden @ head.T, 5)
    assert sampling_s < MAX_SHARE * product_s, f"{sampling_s:.4f} s, {product_s:.3f} s"


def test_one_kernel_serves_every_request_so_that_none_waits_for_a_compiler() -> None:
    sampler = make_sampler("kernel", 1000)
    plain, mixed = mixed_requests()[3:4], mixed_requests()
    for requests in (plain, mixed):
        step = Step(tuple(ScheduledRequest(request, 1) for request in requests))
        sampled = sampler.sample(torch.zeros(len(requests), 1003), step)
        assert all(result.token_ids for result in sampled)
    assert len(numba_sampling.sample_rows.signatures) == 1
