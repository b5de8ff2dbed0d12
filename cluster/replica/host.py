"""A replica as its links see it: the stream table, joined to a clock and to the engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.replica.health import Progress
from cluster.replica.streams import StreamTable
from protos.v1 import link_pb2 as link


class ReplicaHost:
    """Serves links (`cluster.link.server.StreamHost`) from a table that an engine fills."""

    def __init__(
        self,
        table: StreamTable,
        progress: Progress,
        hello: link.Hello,
        send: Callable[[link.EngineCommand], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` hands a command to the engine and never waits."""
        self._table = table
        self._progress = progress
        self._hello = hello
        self._send = send
        self._clock = clock

    def hello(self) -> link.Hello:
        """What a router is told first."""
        return self._hello

    def load(self) -> link.Load:
        """The replica's load now."""
        return self._table.load(self._progress.step_age_s)

    def receive(self, connection: int, frame: link.RouterFrame) -> None:
        """A router's submits, aborts and attaches."""
        for submit in frame.submit:
            self._table.submit(connection, submit)
        for request_id in frame.abort:
            self._table.abort(connection, request_id)
        for attach in frame.attach:
            self._table.attach(connection, attach)
        self._after_change()

    def has_news(self, connection: int) -> bool:
        """Whether the next frame would hold deltas or rejects."""
        return self._table.has_news(connection)

    def is_busy(self, connection: int) -> bool:
        """Whether the connection has streams in flight."""
        return self._table.is_busy(connection)

    def next_frame(self, connection: int) -> link.ReplicaFrame:
        """What is new since the last call, as much as a frame holds, and the load."""
        frame = self._table.take(connection)
        frame.load.CopyFrom(self.load())
        return frame

    def disconnect(self, connection: int) -> None:
        """The router is gone; its streams are orphans now."""
        self._table.disconnect(connection, self._clock())

    def on_step(self, event: link.EngineEvent) -> None:
        """The engine has ended a step."""
        self._progress.step_ended()
        self._table.on_step(event, self._clock())
        self._after_change()

    def expire(self) -> None:
        """Drop the streams that nobody came back for; call it a few times a second."""
        self._table.expire(self._clock())
        self._after_change()

    def drain(self, reason: str) -> None:
        """Accept no more requests; running streams go on."""
        self._table.refuse(reason)

    @property
    def num_unfinished(self) -> int:
        """Streams that the engine works on or has queued."""
        return self._table.num_unfinished

    def require_progress(self) -> None:
        """Return if all is well.

        Raises:
            EngineError: the engine is gone, or its step is older than its budget.
        """
        self._progress.require()

    def fail(self, problem: str) -> None:
        """The engine is gone for good: `require_progress` raises from now on."""
        self._progress.fail(problem)

    def lose(self, message: str) -> None:
        """End every unfinished stream as LOST, with what its router is told; accept no more."""
        self._table.lose(message, self._clock())

    def _after_change(self) -> None:
        command = self._table.take_command()
        if command is not None:
            self._send(command)
        self._progress.watch(has_work=self._table.num_unfinished > 0)
