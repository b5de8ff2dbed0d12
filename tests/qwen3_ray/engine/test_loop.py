import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.engine import loop as loop_module
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.loop import EngineLoop
from qwen3_ray.engine.stats import EngineStats
from qwen3_ray.errors import ConfigError, EngineError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing import FakeExecutor, make_fake_engine

DEADLINE_S = 20.0


class Recorder:
    """What `on_step` was given, and a way to wait for it."""

    def __init__(self) -> None:
        self.deltas: list[TokenDelta] = []
        self.num_calls = 0
        self.stats = EngineStats()
        self._changed = threading.Condition()

    def __call__(self, deltas: list[TokenDelta], stats: EngineStats) -> None:
        with self._changed:
            self.deltas += deltas
            self.num_calls += 1
            self.stats = stats
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S)

    def ends(self) -> dict[str, FinishReason]:
        return {d.request_id: d.finish_reason for d in self.deltas if d.finish_reason is not None}

    def wait_for_ends(self, count: int) -> dict[str, FinishReason]:
        self.wait(lambda: len(self.ends()) >= count)
        return self.ends()


class GatedExecutor(FakeExecutor):
    """Computes a step only when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)

    def execute(self, step: Step) -> list[Sampled]:
        assert self.gate.acquire(timeout=DEADLINE_S)
        return super().execute(step)


@contextmanager
def running(build: Callable[[], Engine]) -> Iterator[tuple[EngineLoop, Recorder]]:
    recorder = Recorder()
    loop = EngineLoop(build, recorder)
    loop.start()
    try:
        loop.wait_ready(DEADLINE_S)
        yield loop, recorder
    finally:
        loop.stop(DEADLINE_S)


def make_request(request_id: str, *, max_tokens: int = 3) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=(1, 2, 3),
        params=SamplingParams(max_tokens=max_tokens, seed=0),
    )


def test_requests_from_many_threads_all_end() -> None:
    executor = FakeExecutor()
    with running(lambda: make_fake_engine(executor)) as (loop, recorder):
        assert loop.info.model_name == "fake"
        threads = [
            threading.Thread(target=loop.submit, args=([make_request(f"{i}")],)) for i in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        ends = recorder.wait_for_ends(20)
        assert set(ends.values()) == {FinishReason.LENGTH}
        assert sum(len(delta.token_ids) for delta in recorder.deltas) == 60
    assert loop.error is None
    assert executor.is_closed


def test_an_abort_ends_a_request_once_and_unknown_ids_are_ignored() -> None:
    executor = GatedExecutor()
    with running(lambda: make_fake_engine(executor)) as (loop, recorder):
        loop.submit([make_request("a", max_tokens=50), make_request("b")])
        executor.gate.release()
        recorder.wait(lambda: len(recorder.deltas) == 2)
        loop.submit(aborts=["a", "unknown"])
        executor.gate.release(100)
        ends = recorder.wait_for_ends(2)
        assert ends == {"a": FinishReason.ABORT, "b": FinishReason.LENGTH}
        loop.submit([make_request("a")])  # its id is free again
        recorder.wait(lambda: recorder.deltas[-1].finish_reason is FinishReason.LENGTH)


def test_a_request_and_its_abort_may_come_together() -> None:
    with running(make_fake_engine) as (loop, recorder):
        loop.submit([make_request("a")], ["a"])
        assert recorder.wait_for_ends(1) == {"a": FinishReason.ABORT}


def test_an_idle_loop_shows_the_ranks_and_its_owner_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "IDLE_INTERVAL_S", 0.01)
    executor = FakeExecutor()
    with running(lambda: make_fake_engine(executor)) as (_, recorder):
        recorder.wait(lambda: recorder.num_calls >= 3)
        assert executor.num_idles >= 3
        assert executor.steps == []


def test_a_refused_request_ends_with_the_reason() -> None:
    with running(lambda: make_fake_engine(max_model_len=3)) as (loop, recorder):
        loop.submit([make_request("long")])
        assert recorder.wait_for_ends(1) == {"long": FinishReason.ERROR}
        assert recorder.deltas[0].error_param == "prompt"
        assert "has 3 tokens" in (recorder.deltas[0].error or "")
    assert loop.error is None


def test_an_id_in_flight_is_refused_at_once() -> None:
    executor = GatedExecutor()
    with running(lambda: make_fake_engine(executor)) as (loop, recorder):
        loop.submit([make_request("a")])
        with pytest.raises(RequestError, match="in flight"):
            loop.submit([make_request("b"), make_request("a")])
        executor.gate.release(100)
        assert recorder.wait_for_ends(1) == {"a": FinishReason.LENGTH}


def test_a_dead_engine_ends_everything_in_flight_and_says_why() -> None:
    executor = FakeExecutor(fail_at_step=2)
    with running(lambda: make_fake_engine(executor)) as (loop, recorder):
        loop.submit([make_request(str(i), max_tokens=9) for i in range(12)])  # 8 run, 4 wait
        ends = recorder.wait_for_ends(12)
        assert set(ends.values()) == {FinishReason.ERROR}
        assert "as it was told" in (recorder.deltas[-1].error or "")
        assert isinstance(loop.error, EngineError)
        with pytest.raises(EngineError, match="has ended: the fake executor fails"):
            loop.submit([make_request("late")])
    assert executor.is_closed


def test_lost_blocks_are_noticed_when_the_engine_becomes_idle() -> None:
    engine = make_fake_engine()
    with running(lambda: engine) as (loop, recorder):
        engine._kv._pool.allocate(1)
        loop.submit([make_request("a")])
        assert recorder.wait_for_ends(1) == {"a": FinishReason.ERROR}
        assert loop.error is not None


def test_stopping_aborts_what_is_in_flight() -> None:
    executor = GatedExecutor()
    with running(lambda: make_fake_engine(executor)) as (loop, recorder):
        loop.submit([make_request("a", max_tokens=50)])
        executor.gate.release(3)
        recorder.wait(lambda: len(recorder.deltas) == 3)
        executor.gate.release(100)
    assert recorder.ends() == {"a": FinishReason.ABORT}
    with pytest.raises(EngineError, match="stopped"):
        loop.submit([make_request("b")])


def test_a_build_error_reaches_the_one_who_waits() -> None:
    def build() -> Engine:
        raise ConfigError("model", "x", "is not there")

    loop = EngineLoop(build, Recorder())
    loop.start()
    with pytest.raises(ConfigError, match="is not there"):
        loop.wait_ready(DEADLINE_S)
    with pytest.raises(EngineError, match="has ended"):
        loop.submit([make_request("a")])
    loop.stop(DEADLINE_S)


def test_waiting_for_a_slow_build_times_out() -> None:
    gate = threading.Event()

    def build() -> Engine:
        gate.wait(DEADLINE_S)
        return make_fake_engine()

    loop = EngineLoop(build, Recorder())
    loop.start()
    with pytest.raises(TimeoutError):
        loop.wait_ready(0.01)
    with pytest.raises(EngineError, match="not ready"):
        _ = loop.info
    gate.set()
    loop.wait_ready(DEADLINE_S)
    loop.stop(DEADLINE_S)


def test_an_owner_that_raises_ends_the_loop_and_nothing_hangs() -> None:
    def on_step(_deltas: list[TokenDelta], _stats: EngineStats) -> None:
        raise ValueError("the owner is broken")

    loop = EngineLoop(make_fake_engine, on_step)
    loop.start()
    loop.wait_ready(DEADLINE_S)
    loop.submit([make_request("a")])
    deadline = time.monotonic() + DEADLINE_S
    while loop.error is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert isinstance(loop.error, ValueError)
    loop.stop(DEADLINE_S)


def test_a_reset_prefix_cache_is_forgotten_by_requests_that_come_after() -> None:
    with running(make_fake_engine) as (loop, recorder):
        for number, reset in enumerate([False, False, True, False]):
            if reset:
                loop.reset_prefix_cache()
            request = replace(make_request(str(number)), prompt_token_ids=tuple(range(9)))
            loop.submit([request])
            recorder.wait_for_ends(number + 1)
        firsts = [d.num_cached_tokens for d in recorder.deltas if d.num_cached_tokens is not None]
        assert firsts == [0, 8, 0, 8]
    with pytest.raises(EngineError, match="has ended"):
        loop.reset_prefix_cache()
