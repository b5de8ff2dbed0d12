"""A replica is healthy as long as its steps end, and only if it has any to do."""

import pytest

from cluster.replica.health import STEP_FACTOR, Progress
from qwen3_ray.errors import EngineError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_idle_engine_is_healthy_for_ever() -> None:
    clock = Clock()
    progress = Progress(10.0, clock=clock)
    clock.now = 1e6
    progress.require()
    assert progress.step_age_s == 0.0


def test_work_without_a_step_is_noticed_when_its_budget_is_over() -> None:
    clock = Clock()
    progress = Progress(10.0, clock=clock)
    clock.now = 100.0
    progress.watch(has_work=True)
    clock.now = 110.0
    progress.require()
    progress.watch(has_work=True)  # more work does not make the step younger
    clock.now = 110.5
    with pytest.raises(EngineError, match=r"no engine step has ended for 10.5 s"):
        progress.require()


def test_slow_steps_widen_the_budget() -> None:
    clock = Clock()
    progress = Progress(10.0, clock=clock)
    progress.watch(has_work=True)
    clock.now = 2.0
    progress.step_ended()
    clock.now = 2.0 + 10.0 + STEP_FACTOR * 2.0
    progress.require()
    clock.now += 0.1
    with pytest.raises(EngineError):
        progress.require()


def test_the_time_between_two_requests_is_no_step() -> None:
    clock = Clock()
    progress = Progress(10.0, clock=clock)
    progress.watch(has_work=True)
    progress.step_ended()
    progress.watch(has_work=False)
    clock.now = 500.0
    progress.watch(has_work=True)
    assert progress.step_age_s == 0.0
    progress.require()


def test_a_lost_engine_is_never_healthy_again() -> None:
    progress = Progress(10.0, clock=Clock())
    progress.fail("rank 1 died")
    with pytest.raises(EngineError, match="rank 1 died"):
        progress.require()
