"""A whole engine on this machine: rank 0 in this process, the others as its children."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from qwen3_ray.config import EngineConfig
from qwen3_ray.engine.children import RankProcesses
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.loop import EngineLoop
from qwen3_ray.engine.progress import OnProgress
from qwen3_ray.engine.rank import build_engine
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.errors import ConfigError, EngineError
from qwen3_ray.request import GenerateRequest, TokenDelta

_STOP_S = 5.0
_DEATH_NOTICE_S = 1.0

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
        self._ranks = ranks = RankProcesses(config, self._directory)
        directory = self._directory

        def build() -> Engine:
            return build_engine(
                config,
                rendezvous_dir=directory,
                on_progress=on_progress,
                check_peers=ranks.check,
            )

        self._loop = EngineLoop(build, self._routes.deliver)
        self._loop.start()
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
        self._loop.stop(_STOP_S)
        self._ranks.close(grace_s=_STOP_S)
        self._loop.stop(_STOP_S)  # should it have waited for a rank that is dead only now
        shutil.rmtree(self._directory, ignore_errors=True)

    def _explain(self, error: Exception) -> EngineError:
        dead = self._ranks.describe_dead(wait_s=_DEATH_NOTICE_S)
        return EngineError(f"{error} ({dead})" if dead and dead not in str(error) else str(error))
