"""The step thread: builds an engine, feeds it, runs it, and tells when it dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from qwen3_ray.engine.compile_stage import CompileStage, refusal
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.errors import EngineError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta

IDLE_INTERVAL_S = 1.0

OnStep = Callable[[list[TokenDelta], EngineStats], None]


@dataclass(slots=True)
class _Inbox:
    """What other threads left for the step thread."""

    requests: list[GenerateRequest] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    resets_prefix_cache: bool = False
    has_compiled: bool = False
    """Grammars have been compiled."""

    def __bool__(self) -> bool:
        return bool(self.requests or self.aborts or self.resets_prefix_cache or self.has_compiled)


class EngineLoop:
    """Runs one engine in one thread: the one whose thread counts were set and kernels tested.

    Every submitted request ends with exactly one finish reason in `on_step`: its own, `ABORT` when
    it was aborted or the loop stopped, `ERROR` when it could not be served or the engine died.
    Requests whose output has a form reach the engine when their grammar is compiled.

    Args:
        build: builds the engine, in the step thread.
        on_step: called in the step thread after each step, and about once a second while idle
            (a sign of life), with what happened since the last call. It must be quick; if it
            raises, the loop dies.
    """

    def __init__(self, build: Callable[[], Engine], on_step: OnStep) -> None:
        self._build = build
        self._on_step = on_step
        self._thread = threading.Thread(target=self._run, name="engine-step", daemon=True)
        self._wake = threading.Condition()
        self._ready = threading.Event()
        self._step_began_at: float | None = None
        # Below: guarded by `_wake`.
        self._inbox = _Inbox()
        self._in_flight: dict[str, None] = {}
        self._stopping = False
        self._ended = False
        self._error: Exception | None = None
        self._info: EngineInfo | None = None

    @property
    def error(self) -> Exception | None:
        """What ended the loop, if it was not `stop`."""
        return self._error

    @property
    def step_age_s(self) -> float:
        """How long the step takes that is being computed; 0 if none is."""
        began_at = self._step_began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    @property
    def info(self) -> EngineInfo:
        """Facts of the engine, once it is ready."""
        if self._info is None:
            raise EngineError("the engine is not ready")
        return self._info

    def start(self) -> None:
        """Begin to build the engine; returns at once."""
        self._thread.start()

    def wait_ready(self, timeout: float | None = None) -> EngineInfo:
        """Wait until the engine is built.

        Raises:
            TimeoutError: it takes longer than `timeout` seconds.
            Exception: whatever `build` raised.
        """
        if not self._ready.wait(timeout):
            raise TimeoutError(f"the engine was not ready within {timeout} s")
        if self._error is not None:
            raise self._error
        return self.info

    def submit(self, requests: Sequence[GenerateRequest] = (), aborts: Iterable[str] = ()) -> None:
        """Hand over new requests, and ids of requests to abort; an unknown id is ignored.

        Raises:
            EngineError: the loop has ended; nothing was taken.
            RequestError: an id is in flight already; nothing was taken.
        """
        with self._wake:
            self._check_running()
            for request in requests:
                if request.request_id in self._in_flight:
                    raise RequestError("request_id", f"{request.request_id!r} is in flight")
            self._in_flight.update((request.request_id, None) for request in requests)
            self._inbox.requests.extend(requests)
            self._inbox.aborts.extend(aborts)
            self._wake.notify()

    def reset_prefix_cache(self) -> None:
        """Let no request that is submitted from now on find what was computed before.

        Raises:
            EngineError: the loop has ended.
        """
        with self._wake:
            self._check_running()
            self._inbox.resets_prefix_cache = True
            self._wake.notify()

    def _check_running(self) -> None:
        if self._ended:
            raise EngineError(f"the engine has ended: {self._error or 'stopped'}")

    def stop(self, timeout: float | None = None) -> bool:
        """End after the current step, abort what is in flight, close the engine, join.

        Returns:
            Whether the thread has ended; if not, its step takes longer than `timeout` seconds.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def fail(self, error: Exception, stats: EngineStats) -> None:
        """End as a step that failed does, though one may never return: on a device that hangs.

        Calls `on_step` in the calling thread. Does nothing if the loop has ended.
        """
        with self._wake:
            self._stopping = True
        self._end(error, stats)

    def _run(self) -> None:
        try:
            engine = self._build()
        except Exception as error:
            self._end(error, EngineStats())
            return
        self._info = engine.info
        self._ready.set()
        failure: Exception | None = None
        stage = CompileStage(engine.grammars, self._notice_compiled)
        try:
            self._serve(engine, stage)
        except Exception as error:
            failure = error
        stage.close()
        self._end(failure, engine.stats())
        engine.close()

    def _notice_compiled(self) -> None:
        with self._wake:
            self._inbox.has_compiled = True
            self._wake.notify()

    def _serve(self, engine: Engine, stage: CompileStage) -> None:
        is_clean = True
        while True:
            inbox = self._take(wait=not engine.has_unfinished)
            if inbox is None:
                return
            if inbox.resets_prefix_cache:
                engine.reset_prefix_cache()
            deltas = _add(engine, stage, inbox) + _abort(engine, stage, inbox.aborts)
            if engine.has_unfinished:
                self._step_began_at = time.monotonic()
                deltas += engine.step()
                self._step_began_at = None
                is_clean = False
            else:
                engine.idle()
            if not is_clean and not engine.has_unfinished:
                engine.check_integrity()
                is_clean = True
            stage.release(deltas)
            self._report(deltas, engine.stats())

    def _take(self, *, wait: bool) -> _Inbox | None:
        """What has come in, after at most `IDLE_INTERVAL_S` if there is nothing; None to stop."""
        with self._wake:
            if wait and not (self._inbox or self._stopping):
                self._wake.wait(IDLE_INTERVAL_S)
            if self._stopping:
                return None
            inbox, self._inbox = self._inbox, _Inbox()
            return inbox

    def _report(self, deltas: list[TokenDelta], stats: EngineStats) -> None:
        with self._wake:
            if self._ended:
                return  # failed meanwhile: every request has its end
            for delta in deltas:
                if delta.finish_reason is not None:
                    self._in_flight.pop(delta.request_id, None)
        self._on_step(deltas, stats)

    def _end(self, error: Exception | None, stats: EngineStats) -> None:
        """Take no more requests, and give an end to all that are in flight."""
        with self._wake:
            if self._ended:
                return
            self._ended = True
            self._error = error
            in_flight, self._in_flight = list(self._in_flight), {}
        reason = FinishReason.ABORT if error is None else FinishReason.ERROR
        message = None if error is None else str(error) or type(error).__name__
        deltas = [
            TokenDelta(request_id=request_id, finish_reason=reason, error=message)
            for request_id in in_flight
        ]
        with suppress(Exception):  # it may be the one that ended the loop
            self._on_step(deltas, stats)
        self._ready.set()


def _add(engine: Engine, stage: CompileStage, inbox: _Inbox) -> list[TokenDelta]:
    """Queue requests that are ready to run; a delta for each that is refused."""
    compiled, failed = stage.take()
    passed, refused = stage.add(inbox.requests)
    deltas = failed + refused
    for request in compiled + passed:
        try:
            engine.add_request(request)
        except RequestError as error:
            deltas.append(refusal(request.request_id, error))
    return deltas


def _abort(engine: Engine, stage: CompileStage, request_ids: Sequence[str]) -> list[TokenDelta]:
    return [
        TokenDelta(request_id=request_id, finish_reason=FinishReason.ABORT)
        for request_id in request_ids
        if stage.abort(request_id) or engine.abort_request(request_id)
    ]
