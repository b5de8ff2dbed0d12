"""A whole engine on this machine: rank 0 in this process, the others as its children."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.children import RankProcesses
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.loop import EngineLoop
from qwen3_ray.engine.progress import OnProgress
from qwen3_ray.engine.rank import build_engine
from qwen3_ray.engine.rendezvous import GROUP_TIMEOUT_S
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.errors import ConfigError, EngineError
from qwen3_ray.request import GenerateRequest, TokenDelta

_STOP_S = 5.0
_DEATH_NOTICE_S = 1.0
_WATCH_S = 0.5
_HANG_S = 5.0
"""After a rank's end; a collective on the host fails at once, one on a GPU waits for ever."""

Deltas = SimpleQueue[TokenDelta]


class _Routes:
    """Which queue a request's deltas go to; filled by callers, read by the step thread."""

    def __init__(self) -> None:
        self.queues: dict[str, Deltas] = {}
        self.stats = EngineStats()

    def deliver(self, deltas: list[TokenDelta], stats: EngineStats) -> None:
        self.stats = stats
        for delta in deltas:
            queue = self.queues.get(delta.request_id)
            if queue is not None:
                queue.put(delta)


class LocalEngine:
    """Starts an engine and its ranks, and hands out deltas. Any thread may use it.

    Raises:
        ConfigError: the settings cannot work with this model, checkpoint or machine.
        EngineError: a rank died while it started; the message ends with what it said.
    """

    def __init__(self, config: EngineConfig, on_progress: OnProgress) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="qwen3-ray-"))  # mode 0700
        self._routes = _Routes()
        self._groups: list[TPGroup] = []
        """Of the ranks, once they have met."""
        self._ranks = ranks = RankProcesses(config, self._directory)
        directory = self._directory

        def build() -> Engine:
            return build_engine(
                config,
                rendezvous_dir=directory,
                on_progress=on_progress,
                check_peers=ranks.check,
                on_group=self._groups.append,
            )

        self._loop = EngineLoop(build, self._routes.deliver)
        self._loop.start()
        self._closing = threading.Event()
        if config.tensor_parallel_size > 1:
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()
        try:
            self.info: EngineInfo = self._loop.wait_ready()
        except ConfigError:
            self.close()
            raise
        except EngineError as error:
            failure = self._explain(error)
            self.close()
            raise failure from error
        except BaseException:
            self.close()
            raise

    @property
    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._routes.stats

    @property
    def rank_pids(self) -> list[int]:
        """Process ids of the ranks from 1 on."""
        return self._ranks.pids

    @contextmanager
    def submit(self, requests: Sequence[GenerateRequest]) -> Iterator[Deltas]:
        """Run requests; gives the queue of their deltas. Leaving aborts what is unfinished.

        Raises:
            EngineError: the engine is dead or closed.
        """
        queue: Deltas = SimpleQueue()
        request_ids = [request.request_id for request in requests]
        self._routes.queues.update((request_id, queue) for request_id in request_ids)
        try:
            self.raise_if_dead()
            self._loop.submit(requests)
            yield queue
        finally:
            for request_id in request_ids:
                del self._routes.queues[request_id]
            self.abort(request_ids)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stop the engine's work on requests, of which some may have finished."""
        with suppress(EngineError):  # an engine that has ended works on nothing
            self._loop.submit(aborts=request_ids)

    def reset_prefix_cache(self) -> None:
        """Let no later request find what was computed before.

        Raises:
            EngineError: the engine is dead or closed.
        """
        self.raise_if_dead()
        self._loop.reset_prefix_cache()

    def raise_if_dead(self) -> None:
        """Raise EngineError, with what the dead rank said, if the engine has failed."""
        if self._loop.error is not None:
            raise self._explain(self._loop.error) from self._loop.error

    def close(self) -> None:
        """End the engine and its ranks. Again: nothing happens."""
        self._closing.set()
        has_ended = self._loop.stop(_STOP_S)
        self._ranks.close(grace_s=_STOP_S)
        if not has_ended:  # it may have waited for a rank that is dead only now
            with suppress(RuntimeError):  # an interpreter that ends starts no more threads
                self._abort_group()
            self._loop.stop(_STOP_S)
        self._groups.clear()  # and what they hold of the device
        shutil.rmtree(self._directory, ignore_errors=True)

    def _watch(self) -> None:
        """Until the end: notice a lost rank, should the step thread wait for it on the device."""
        while not self._closing.wait(_WATCH_S):
            if not self._problem() or self._closing.wait(_HANG_S):
                continue
            problem = self._problem()  # a process that was stopped for long may just go on
            if problem:
                self._loop.fail(EngineError(problem), self._routes.stats)
                self._abort_group()  # now that nobody takes what the step will give
                return

    def _problem(self) -> str:
        return self._ranks.describe_dead() or self._describe_hang()

    def _describe_hang(self) -> str:
        """On a device no collective has a time limit once it is captured."""
        age_s = self._loop.step_age_s
        if age_s < GROUP_TIMEOUT_S or not any(group.can_capture for group in self._groups):
            return ""
        return f"a rank of the group is silent: no step has ended for {age_s:.0f} s"

    def _abort_group(self) -> None:
        for group in self._groups:
            threading.Thread(target=group.abort, name="group-abort", daemon=True).start()

    def _explain(self, error: Exception) -> EngineError:
        dead = self._ranks.describe_dead(wait_s=_DEATH_NOTICE_S)
        return EngineError(f"{error} ({dead})" if dead and dead not in str(error) else str(error))
