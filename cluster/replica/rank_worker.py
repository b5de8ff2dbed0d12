"""What runs in a rank's process: rank 0 leads the engine for the front, the others follow.

Torch loads in here, after Ray has given the process its devices; nothing above imports it.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.link.requests import request_of
from cluster.ops.progress import publish
from cluster.replica.channel import RankChannel
from cluster.replica.messages import ready_event, step_event
from qwen3_ray.config import EngineConfig
from qwen3_ray.errors import EngineError
from qwen3_ray.request import TokenDelta

if TYPE_CHECKING:
    from qwen3_ray.engine.engine import Engine
    from qwen3_ray.engine.loop import EngineLoop
    from qwen3_ray.engine.rank import LoadProgress
    from qwen3_ray.engine.stats import EngineStats

POLL_S = 0.1
"""How soon rank 0 notices that its step thread has died."""
STOP_LIMIT_S = 2.0
PUBLISH_PERIOD_S = 0.1


class RankWorker:
    """One rank of a replica's group, as a Ray actor. Its process ends with the front's."""

    def __init__(
        self,
        config: EngineConfig,
        rank: int,
        rendezvous_dir: Path,
        socket_path: Path,
        replica_id: str,
    ) -> None:
        """`rendezvous_dir` is where the ranks meet, `socket_path` where the front listens."""
        self._config = config
        self._rank = rank
        self._rendezvous_dir = rendezvous_dir
        self._socket_path = socket_path
        self._reporter = _Reporter(replica_id, rank)

    def run(self) -> None:
        """Load, then serve until told to stop.

        Raises:
            Qwen3RayError: what ended the rank, from its first line on.
        """
        from qwen3_ray.engine.loop import EngineLoop  # noqa: PLC0415
        from qwen3_ray.engine.rank import build_engine, serve_rank  # noqa: PLC0415

        if self._rank > 0:
            serve_rank(
                self._config,
                self._rank,
                rendezvous_dir=self._rendezvous_dir,
                on_progress=self._reporter.report,
            )
            return

        def build() -> Engine:
            return build_engine(
                self._config,
                rendezvous_dir=self._rendezvous_dir,
                on_progress=self._reporter.report,
            )

        channel = RankChannel(self._socket_path)

        def on_step(deltas: list[TokenDelta], stats: EngineStats) -> None:
            # A dying engine ends its requests with ERROR. Their streams can go on elsewhere, so
            # the front must not hear of it: it ends them as LOST when this process fails.
            if loop.error is None:
                channel.send(partial(step_event, deltas, stats))

        loop = EngineLoop(build, on_step)
        try:
            loop.start()
            channel.send(partial(ready_event, loop.wait_ready()))
            _lead(loop, channel)
        finally:
            loop.stop(STOP_LIMIT_S)
            channel.close()


def _lead(loop: EngineLoop, channel: RankChannel) -> None:
    """Pass the front's commands on to the engine until it says stop."""
    while loop.error is None:
        commands = channel.read(POLL_S)
        if commands is None:
            raise EngineError("the front is gone")
        for command in commands:
            if command.stop:
                return
            loop.submit([request_of(submit) for submit in command.submit], command.abort)
    raise EngineError(f"the engine ended: {loop.error}") from loop.error


class _Reporter:
    """Publishes a rank's progress: each new stage, and now and then the bytes within one."""

    def __init__(self, replica_id: str, rank: int) -> None:
        self._replica_id = replica_id
        self._rank = rank
        self._stage = ""
        self._due_at = 0.0

    def report(self, progress: LoadProgress) -> None:
        now = time.monotonic()
        is_last = progress.done >= progress.total
        if progress.stage == self._stage and now < self._due_at and not is_last:
            return
        self._stage = progress.stage
        self._due_at = now + PUBLISH_PERIOD_S
        publish(self._replica_id, progress.stage, progress.done, progress.total, rank=self._rank)
