"""The scaling policy: bounds, monotony, delays, and what it says about itself."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.policy import (
    Pending,
    ReplicaLoad,
    ScalingSettings,
    decide,
    desired_replicas,
)

SETTINGS = ScalingSettings(
    min_replicas=1,
    max_replicas=4,
    target_waiting_tokens=1000,
    max_num_seqs=10,
    upscale_delay_s=2.0,
    downscale_delay_s=30.0,
)

loads = st.lists(
    st.builds(
        ReplicaLoad,
        waiting_tokens=st.floats(0, 1e7),
        running=st.floats(0, 512),
        kv_usage=st.floats(0, 1),
    ),
    max_size=5,
)
settings = st.builds(
    lambda low, more, target, seqs, up, down: ScalingSettings(
        min_replicas=low,
        max_replicas=low + more,
        target_waiting_tokens=target,
        max_num_seqs=seqs,
        upscale_delay_s=up,
        downscale_delay_s=down,
    ),
    st.integers(1, 4),
    st.integers(0, 8),
    st.integers(1, 10_000),
    st.integers(1, 512),
    st.floats(0, 10),
    st.floats(0, 100),
)


def _waiting(*tokens: float) -> list[ReplicaLoad]:
    return [ReplicaLoad(waiting_tokens=value) for value in tokens]


@given(loads, settings)
def test_the_wish_stays_within_the_bounds(
    loads: list[ReplicaLoad], settings: ScalingSettings
) -> None:
    wanted, _ = desired_replicas(loads, settings)
    assert settings.min_replicas <= wanted <= settings.max_replicas


@given(loads, settings, st.sampled_from(["waiting_tokens", "running", "kv_usage"]), st.data())
def test_more_work_never_asks_for_fewer_replicas(
    loads: list[ReplicaLoad], settings: ScalingSettings, kind: str, data: st.DataObject
) -> None:
    if not loads:
        return
    index = data.draw(st.integers(0, len(loads) - 1))
    more = getattr(loads[index], kind) + data.draw(st.floats(0, 1e6))
    heavier = [*loads]
    heavier[index] = dataclasses.replace(loads[index], **{kind: more})
    assert desired_replicas(heavier, settings)[0] >= desired_replicas(loads, settings)[0]


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        pytest.param([], 1, id="no replica has spoken"),
        pytest.param(_waiting(0), 1, id="idle"),
        pytest.param(_waiting(1000), 1, id="at the target"),
        pytest.param(_waiting(1001), 2, id="above the target"),
        pytest.param(_waiting(900, 900, 900), 3, id="spread over three"),
        pytest.param(_waiting(10**9), 4, id="never above the most"),
        pytest.param([ReplicaLoad(running=8)], 1, id="eight of ten sequences"),
        pytest.param([ReplicaLoad(running=9)], 2, id="nine of ten sequences"),
        pytest.param([ReplicaLoad(kv_usage=0.9)], 2, id="cache nearly full"),
        pytest.param([ReplicaLoad(kv_usage=0.8)] * 2, 2, id="two caches at the limit"),
    ],
)
def test_work_is_turned_into_replicas(loads: list[ReplicaLoad], wanted: int) -> None:
    assert desired_replicas(loads, SETTINGS)[0] == wanted


def _run(
    trace: Sequence[tuple[float, float]], settings: ScalingSettings = SETTINGS, target: int = 1
) -> list[int]:
    """Targets after each (time in seconds, waiting tokens) of a trace."""
    pending: Pending | None = None
    targets = []
    for now_s, waiting in trace:
        decision = decide(
            _waiting(waiting), target=target, pending=pending, now_s=now_s, settings=settings
        )
        target, pending = decision.num_replicas, decision.pending
        targets.append(target)
    return targets


def test_a_burst_scales_up_after_its_delay_and_back_after_the_other() -> None:
    burst = [(0.1 * i, 3500.0) for i in range(30)]
    quiet = [(3.0 + 0.1 * i, 0.0) for i in range(400)]
    targets = _run(burst + quiet)
    assert targets[:20] == [1] * 20
    assert targets[20] == 4
    assert targets[30 + 299] == 4
    assert targets[30 + 301] == 1
    assert set(targets) == {1, 4}


def test_scaling_down_stops_at_the_largest_wish_of_the_delay() -> None:
    trace = [(0.0, 0.0), (15.0, 1500.0), (30.0, 0.0), (60.0, 0.0)]
    assert _run(trace, target=4) == [4, 4, 2, 2]


def test_a_wish_that_breaks_off_starts_over() -> None:
    trace = [(0.0, 5000.0), (1.9, 5000.0), (2.0, 0.0), (2.5, 5000.0), (4.0, 5000.0), (4.5, 5000.0)]
    assert _run(trace) == [1, 1, 1, 1, 1, 4]


def test_a_wish_in_the_other_direction_starts_its_own_delay() -> None:
    trace = [(0.0, 0.0), (20.0, 5000.0), (21.0, 5000.0), (22.0, 5000.0)]
    assert _run(trace, target=2) == [2, 2, 2, 4]


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 20_000)), min_size=1, max_size=60),
    settings,
)
def test_two_opposite_changes_are_never_closer_than_the_delay(
    steps: list[tuple[float, float]], settings: ScalingSettings
) -> None:
    now_s, trace = 0.0, []
    for gap_s, waiting in steps:
        now_s += gap_s
        trace.append((now_s, waiting))
    targets = [settings.min_replicas, *_run(trace, settings, settings.min_replicas)]
    assert all(settings.min_replicas <= n <= settings.max_replicas for n in targets)
    changes = [
        (trace[i][0], targets[i + 1] > targets[i])
        for i in range(len(trace))
        if targets[i + 1] != targets[i]
    ]
    for (earlier_s, was_up), (later_s, is_up) in itertools.pairwise(changes):
        if was_up != is_up:
            delay_s = settings.upscale_delay_s if is_up else settings.downscale_delay_s
            assert later_s - earlier_s >= delay_s


@pytest.mark.parametrize(
    ("waiting", "now_s", "says"),
    [
        (5000.0, 0.0, "stay at 1, 4 wanted for 0.0 of 2 s: 5000 waiting tokens at 1000 a replica"),
        (0.0, 0.0, "stay at 1: "),
    ],
)
def test_a_decision_explains_itself(waiting: float, now_s: float, says: str) -> None:
    decision = decide(_waiting(waiting), target=1, pending=None, now_s=now_s, settings=SETTINGS)
    assert decision.reason.startswith(says)


def test_a_change_names_both_numbers_and_the_reason() -> None:
    decision = decide(
        _waiting(1500.0), target=1, pending=Pending(0.0, 2), now_s=2.0, settings=SETTINGS
    )
    assert decision.reason == (
        "1 to 2 replicas: 1500 waiting tokens at 1000 a replica need 2, bounds 1 to 4"
    )
