"""Any mix of requests, against the oracle of one request alone; and what the mix costs."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.core.step import Sampled
from qwen3_ray.errors import RequestError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import VOCAB_SIZE, Rig, check_contiguous, make_request, oracle

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.one_of(st.none(), st.integers(1, 30)),
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2),
)
RIGS = st.builds(
    Rig,
    num_blocks=st.integers(6, 12),
    block_size=st.sampled_from([1, 2, 4]),
    max_num_seqs=st.integers(2, 6),
    max_num_batched_tokens=st.integers(6, 20),
    max_model_len=st.integers(12, 48),
)
ADD = st.tuples(st.integers(0, 14), PARAMS)
ABORT = st.integers(0, 50)
STEPS = st.sampled_from(["step", "steps"])
SCHEDULES = st.lists(st.one_of(ADD, ADD, ADD, STEPS, STEPS, ABORT), min_size=8, max_size=40)


@settings(max_examples=300, deadline=None)
@given(rig=RIGS, schedule=SCHEDULES)
def test_any_schedule_of_adds_aborts_and_steps_gives_each_request_its_own_answer(
    rig: Rig, schedule: list[tuple[int, SamplingParams] | int | str]
) -> None:
    accepted: dict[str, GenerateRequest] = {}
    aborted: set[str] = set()
    for number, action in enumerate(schedule):
        if isinstance(action, tuple):
            request = make_request(str(number), *action)
            if 1 <= action[0] < rig.max_len:
                rig.scheduler.add(request)
                accepted[request.request_id] = request
            else:
                with pytest.raises(RequestError):
                    rig.scheduler.add(request)
        elif isinstance(action, int) and accepted:
            request_id = list(accepted)[action % len(accepted)]
            unfinished = request_id not in rig.ends and request_id not in aborted
            assert rig.scheduler.abort(request_id) == unfinished
            if unfinished:
                aborted.add(request_id)
        else:
            for _ in range(1 if action == "step" else 5):
                rig.step()
        rig.scheduler.check_integrity()
    rig.run()

    assert set(rig.ends) == set(accepted) - aborted
    for request_id, request in accepted.items():
        output, end = oracle(request, rig.max_len)
        given = rig.tokens.get(request_id, [])
        assert given == output[: len(given)]
        if request_id not in aborted:
            assert (given, rig.ends[request_id]) == (output, end)
    restarts = sum(check_contiguous(spans) for spans in rig.model.computed.values())
    assert restarts <= rig.scheduler.num_preemptions
    assert (rig.kv.usage, rig.scheduler.num_waiting_tokens) == (0.0, 0)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=8), num_blocks=st.integers(7, 12))
def test_equal_output_lengths_finish_in_the_order_of_arrival(
    lengths: list[int], num_blocks: int
) -> None:
    rig = Rig(num_blocks=num_blocks, max_num_seqs=3)
    for number, length in enumerate(lengths):
        rig.scheduler.add(
            make_request(str(number), length, SamplingParams(max_tokens=5, ignore_eos=True))
        )
    rig.run()
    order = [rig.finish_steps[str(number)] for number in range(len(lengths))]
    assert order == sorted(order)


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


@pytest.mark.parametrize("seconds", [schedule_seconds, abort_seconds])
def test_cost_grows_in_proportion_to_the_requests(seconds: Callable[[int], float]) -> None:
    # Processor time, and the best of several attempts: other work on the machine only adds to it.
    ratios = []
    for _ in range(5):
        best = {n: min(seconds(n) for _ in range(3)) for n in (256, 1_024)}
        ratios.append(best[1_024] / best[256])
        if ratios[-1] <= 6:
            return
    pytest.fail(f"1,024 requests cost {ratios} times as much as 256")
