"""How a whole step's cost outside the model grows: planned, laid out, sampled, committed, sent."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from benchmarks import profile_step
from cluster.replica.channel import encode
from cluster.replica.messages import step_event
from qwen3_ray.sampling_params import SamplingParams

PROMPT_LEN = 4


def step_seconds(num_requests: int, kinds: Sequence[SamplingParams]) -> float:
    """Processor seconds of the fastest of some steps in which all requests decode."""
    engine = profile_step.engine_of_logits(num_requests, PROMPT_LEN)
    for request in profile_step.make_requests("r", num_requests, PROMPT_LEN, 1_000, kinds):
        engine.add_request(request)
    times = []
    for _ in range(8):
        start = time.thread_time()
        deltas = engine.step()
        encode(step_event(deltas, engine.stats()))
        times.append(time.thread_time() - start)
        assert len(deltas) == num_requests
    return min(times[2:])  # the first ones compute prompts, and meet requests for the first time


@pytest.mark.parametrize("kind", profile_step.KINDS)
def test_cost_grows_in_proportion_to_the_requests(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few ids that sampling is about what a request costs, not what its logits do.
    monkeypatch.setattr(profile_step, "VOCAB_SIZE", 256)
    monkeypatch.setattr(profile_step, "NUM_KNOWN_IDS", 250)
    ratios = []
    for _ in range(5):
        few, many = (step_seconds(count, profile_step.KINDS[kind]) for count in (256, 1_024))
        ratios.append(many / few)
        if ratios[-1] <= 6:
            return
    pytest.fail(f"1,024 requests cost {ratios} times as much as 256")
