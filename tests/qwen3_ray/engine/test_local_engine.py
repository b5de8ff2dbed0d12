"""What becomes of an engine whose ranks are dead while its step waits for the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig
from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine import local_engine
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.local_engine import LocalEngine
from qwen3_ray.errors import EngineError
from qwen3_ray.request import FinishReason, GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing import FakeExecutor, make_fake_engine
from qwen3_ray.testing_ranks import LoneRank

DEADLINE_S = 20.0
DEAD = "rank 1 was killed by SIGKILL"
REQUEST = GenerateRequest(
    request_id="a", prompt_token_ids=(1, 2), params=SamplingParams(max_tokens=1, seed=0)
)


class _Ranks:
    """Stands for `RankProcesses`; a rank dies when the test says so."""

    is_dead = False

    def __init__(self, *_: object) -> None:
        self.pids: list[int] = []

    def check(self) -> None:
        pass

    def describe_dead(self, *, wait_s: float = 0.0) -> str:  # noqa: ARG002
        return DEAD if _Ranks.is_dead else ""

    def close(self, *, grace_s: float) -> None:
        pass


class _Stuck(FakeExecutor):
    """A replay whose collective waits for ever for a rank that is gone."""

    def __init__(self, release: threading.Event) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self._release = release

    def execute(self, step: Step) -> list[Sampled]:
        self.has_begun.set()
        assert self._release.wait(DEADLINE_S)
        return super().execute(step)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What lets a stuck step go on; the times are short."""
    monkeypatch.setattr(local_engine, "RankProcesses", _Ranks)
    monkeypatch.setattr(_Ranks, "is_dead", False)
    for name in ("_WATCH_S", "_HANG_S", "_STOP_S"):
        monkeypatch.setattr(local_engine, name, 0.05)
    event = threading.Event()
    yield event
    event.set()


class _Group(LoneRank):
    """One whose collectives wait until they are aborted."""

    def __init__(self, release: threading.Event, *, can_capture: bool = True) -> None:
        super().__init__(0, 2, can_capture=can_capture)
        self._release = release

    def abort(self) -> None:
        self._release.set()


def config(tensor_parallel_size: int = 2) -> EngineConfig:
    return EngineConfig(model_dir=DEMO_MODEL_DIR, tensor_parallel_size=tensor_parallel_size)


def stuck_engine(
    group: TPGroup, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> LocalEngine:
    def build(*_: object, on_group: Callable[[TPGroup], None], **__: object) -> Engine:
        on_group(group)
        return make_fake_engine(executor)

    monkeypatch.setattr(local_engine, "build_engine", build)
    return LocalEngine(config(), lambda _: None)


def test_a_dead_rank_is_told_while_the_step_hangs(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = _Stuck(release)
    engine = stuck_engine(LoneRank(0, 2).group(), executor, monkeypatch)
    with engine.submit([REQUEST]) as deltas:
        assert executor.has_begun.wait(DEADLINE_S)
        monkeypatch.setattr(_Ranks, "is_dead", True)
        delta = deltas.get(timeout=DEADLINE_S)
    assert (delta.finish_reason, delta.error) == (FinishReason.ERROR, DEAD)
    with pytest.raises(EngineError, match=DEAD), engine.submit([REQUEST]):
        pass
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < DEADLINE_S / 2


def test_a_rank_that_dies_while_rank_0_is_built_ends_the_wait(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> Engine:
        assert release.wait(DEADLINE_S)
        return make_fake_engine()

    monkeypatch.setattr(local_engine, "build_engine", build)
    monkeypatch.setattr(_Ranks, "is_dead", True)
    with pytest.raises(EngineError, match=DEAD):
        LocalEngine(config(), lambda _: None)


def test_what_a_stuck_step_gives_after_the_end_harms_nobody(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = _Stuck(release)
    engine = stuck_engine(LoneRank(0, 2).group(), executor, monkeypatch)
    with engine.submit([REQUEST]) as deltas:
        assert executor.has_begun.wait(DEADLINE_S)
        monkeypatch.setattr(_Ranks, "is_dead", True)
        assert deltas.get(timeout=DEADLINE_S).finish_reason is FinishReason.ERROR
    release.set()
    engine.close()
    assert executor.is_closed
    with pytest.raises(EngineError, match=DEAD):
        engine.raise_if_dead()


def test_what_waits_on_the_device_for_a_dead_rank_is_let_go(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After everyone has been told: what it then gives is wrong. No thread is left."""
    executor = _Stuck(release)
    engine = stuck_engine(_Group(release).group(), executor, monkeypatch)
    thread = engine._loop._thread
    with engine.submit([REQUEST]) as deltas:
        assert executor.has_begun.wait(DEADLINE_S)
        monkeypatch.setattr(_Ranks, "is_dead", True)
        assert deltas.get(timeout=DEADLINE_S).error == DEAD
    assert release.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    engine.close()


def test_a_rank_that_dies_while_the_engine_is_closed_does_not_hold_the_step_thread(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = _Stuck(release)
    engine = stuck_engine(_Group(release).group(), executor, monkeypatch)
    with engine.submit([REQUEST]):
        assert executor.has_begun.wait(DEADLINE_S)
        monkeypatch.setattr(local_engine, "_STOP_S", 1.0)
        engine.close()
    assert not engine._loop._thread.is_alive()


@pytest.mark.parametrize("can_capture", [True, False])
def test_a_silent_rank_is_told_where_collectives_have_no_limit_of_their_own(
    can_capture: bool, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_engine, "GROUP_TIMEOUT_S", 0.2)
    executor = _Stuck(release)
    group = _Group(release, can_capture=can_capture).group()
    engine = stuck_engine(group, executor, monkeypatch)
    with engine.submit([REQUEST]) as deltas:
        assert executor.has_begun.wait(DEADLINE_S)
        if can_capture:
            assert "is silent: no step has ended for" in str(deltas.get(timeout=DEADLINE_S).error)
        else:
            with pytest.raises(Empty):
                deltas.get(timeout=1.0)
    release.set()
    engine.close()


def test_a_step_that_ends_after_all_fails_nothing(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a stop of the whole process, which lets the step look old for a moment."""
    monkeypatch.setattr(local_engine, "_HANG_S", 0.5)
    engine = stuck_engine(_Group(release).group(), FakeExecutor(), monkeypatch)
    looks, second = iter(["rank 1 is silent"]), threading.Event()

    def problem(_engine: LocalEngine) -> str:
        found = next(looks, "")
        if not found:
            second.set()
        return found

    monkeypatch.setattr(LocalEngine, "_problem", problem)
    assert second.wait(DEADLINE_S)
    with engine.submit([REQUEST]) as deltas:
        assert deltas.get(timeout=DEADLINE_S).error is None
    engine.close()


def test_an_engine_that_has_failed_tells_nothing_more(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = _Stuck(release)
    engine = stuck_engine(LoneRank(0, 2).group(), executor, monkeypatch)
    with engine.submit([REQUEST]) as deltas:
        assert executor.has_begun.wait(DEADLINE_S)
        monkeypatch.setattr(_Ranks, "is_dead", True)
        assert deltas.get(timeout=DEADLINE_S).finish_reason is FinishReason.ERROR
        release.set()
        engine._loop._thread.join(DEADLINE_S)
        assert deltas.empty()
    engine.close()
