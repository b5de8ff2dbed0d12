"""The profile of a step, on few requests and steps."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import profile_step
from benchmarks.profile_step import Profile, Work, print_tables, profile_logits, profile_model
from benchmarks.step_sections import PARTS, SectionClock, is_model
from qwen3_ray.config import DEMO_MODEL_DIR

WORK = Work(nums_requests=[1, 3], prompt_len=5, num_steps=3)
OVERHEAD = {part for part in PARTS if not is_model(part)}


def test_a_section_is_timed_without_those_within_it() -> None:
    clock = SectionClock()
    spin = clock.wrap("inner", lambda count: sum(range(count)))
    outer = clock.wrap(lambda around, count: f"{count} in {around}", spin)
    clock.lap()
    assert outer(1_000_000) == sum(range(1_000_000))
    with pytest.raises(TypeError):
        outer("what fails is closed as well")
    lap = clock.lap()
    assert lap["inner"] > 20 * lap["1000000 in loop"] > 0
    assert lap["loop"] > 0
    assert set(clock.lap()) == {"loop"}


def test_the_parts_of_a_models_step_are_told_apart() -> None:
    profiles = profile_model(DEMO_MODEL_DIR, 1, WORK)
    assert [profile.num_requests for profile in profiles] == [1, 3]
    for profile in profiles:
        assert set(PARTS) < set(profile.parts_ms)
        kernels = {name for name in profile.parts_ms if name.startswith("forward: ")}
        assert "forward: embedding" in kernels
        assert len(kernels) > 3
        assert all(value > 0 for value in profile.parts_ms.values())
        assert 0 < profile.overhead_ms < profile.step_ms
        assert max(profile.parts_ms.values()) < profile.step_ms


def test_given_logits_leave_the_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = profile_logits(WORK)
    assert [(profile.work.split(", ")[1], profile.num_requests) for profile in profiles] == [
        (kind, count) for kind in profile_step.KINDS for count in WORK.nums_requests
    ]
    for profile in profiles:
        assert set(profile.parts_ms) == OVERHEAD | {"forward"}
        assert profile.parts_ms["forward"] < profile.overhead_ms
    print_tables(profiles)
    out = capsys.readouterr().out
    assert out.count("given logits, ") == len(profile_step.KINDS)
    assert out.count("without forward and head   ") == len(profile_step.KINDS)


def test_the_median_of_each_part_and_of_the_whole_is_taken() -> None:
    laps = [
        {"forward": 0.003, "forward: attend": 0.002, "loop": 0.001},
        {"forward": 0.003, "forward: attend": 0.009, "loop": 0.002},
        {"forward": 0.001, "forward: attend": 0.004, "loop": 0.009, "commit": 0.001},
    ]
    profile = Profile.of("work", 4, laps)
    assert profile.parts_ms == {"forward": 3, "forward: attend": 4, "commit": 0, "loop": 2}
    assert list(profile.parts_ms) == ["forward", "forward: attend", "commit", "loop"]
    assert profile.step_ms == pytest.approx(14)
    assert profile.overhead_ms == pytest.approx(2)


def test_json_is_all_that_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--only", "logits", "--requests", "2", "--steps", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["profile_step", *arguments])
    profile_step.main()
    profiles = [Profile(**fields) for fields in json.loads(capsys.readouterr().out)]
    assert [profile.num_requests for profile in profiles] == [2] * len(profile_step.KINDS)
