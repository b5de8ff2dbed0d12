"""Every token stream of a replica: who reads it, what it has, and how long it is kept. Pure.

Time comes in as an argument (seconds on one clock), engine and routers as messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.link.protocol import FRAME_TOKENS
from cluster.replica.admission import Admission, Limits
from cluster.replica.journal import StreamJournal
from protos.v1 import link_pb2 as link
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.output_processor import OutputProcessor

NewProcessor = Callable[[SamplingParams], OutputProcessor | None]
"""Makes the text side of one output from its parameters; None without a tokenizer."""


@dataclass(slots=True, eq=False)
class _Stream:
    """A stream's journal, its name in the engine, its reader, and how long it is kept."""

    journal: StreamJournal
    engine_id: str
    """Used once only, so that late deltas of an aborted stream reach no later one."""
    connection: int | None
    """None for an orphan."""
    expires_at: float | None = None
    """None while it runs for a reader."""


@dataclass(slots=True, eq=False)
class _Outbox:
    """What one connection has to be told, and which of its streams run."""

    news: dict[str, None] = field(default_factory=dict)
    """Streams with something to tell: a set in order of arrival."""
    rejects: list[link.Reject] = field(default_factory=list)
    running: set[str] = field(default_factory=set)


class StreamTable:
    """Accepts requests, feeds the engine, and hands each connection its streams' deltas.

    A stream is kept for `orphan_grace_s` after it finished or lost its router, so that whoever
    missed its end can attach and read it. An unfinished one is then aborted in the engine.
    A message about a stream that is not here any more is not an error: both ends may end it.
    """

    def __init__(self, limits: Limits, new_processor: NewProcessor) -> None:
        self._limits = limits
        self._new_processor = new_processor
        self._admission = Admission(limits)
        self._streams: dict[str, _Stream] = {}
        self._outboxes: dict[int, _Outbox] = {}
        self._command = link.EngineCommand()
        self._stats = link.EngineStats()
        self._unfinished: dict[str, _Stream] = {}  # by engine id
        self._num_submitted = 0
        self._refusal = ""

    @property
    def num_unfinished(self) -> int:
        """Streams that the engine works on or has queued."""
        return len(self._unfinished)

    def is_busy(self, connection: int) -> bool:
        """Whether the connection reads a stream that has not ended."""
        return bool(self._outbox(connection).running)

    def has_news(self, connection: int) -> bool:
        """Whether `take` would give anything."""
        outbox = self._outbox(connection)
        return bool(outbox.news or outbox.rejects)

    def load(self, step_age_s: float) -> link.Load:
        """The replica's load now."""
        return link.Load(
            num_waiting_tokens=self._admission.num_waiting_tokens,
            num_running=self._stats.num_running,
            num_waiting=self._admission.num_waiting,
            kv_cache_usage=self._stats.kv_cache_usage,
            step_age_s=step_age_s,
            num_steps=self._stats.num_steps,
        )

    def submit(self, connection: int, submit: link.Submit) -> None:
        """Accept a request for the engine, or queue a reject."""
        request_id = submit.request_id
        if self._refusal:
            self._reject(connection, request_id, link.Reject.DRAINING, self._refusal)
            return
        if not request_id or request_id in self._streams:
            problem = f"{request_id!r} is in use" if request_id else "must not be empty"
            self._reject(connection, request_id, link.Reject.INVALID, problem, "request_id")
            return
        admitted = self._admission.admit(submit)
        if isinstance(admitted, link.Reject):
            self._outbox(connection).rejects.append(admitted)
            return
        params = admitted.params
        journal = StreamJournal(request_id, lambda: self._new_processor(params))
        self._num_submitted += 1
        stream = _Stream(journal, f"{request_id}#{self._num_submitted}", connection)
        self._streams[request_id] = stream
        self._unfinished[stream.engine_id] = stream
        self._outbox(connection).running.add(request_id)
        self._command.submit.append(submit)
        self._command.submit[-1].request_id = stream.engine_id

    def abort(self, connection: int, request_id: str) -> None:
        """Its reader wants no more of it: stop the engine's work and forget the stream."""
        stream = self._streams.get(request_id)
        if stream is not None and stream.connection in {connection, None}:
            self._drop(stream)

    def attach(self, connection: int, attach: link.Attach) -> None:
        """Give the rest of the stream to `connection`, whoever had it."""
        stream = self._streams.get(attach.request_id)
        if stream is None:
            problem = "no such stream here (any more)"
            self._reject(connection, attach.request_id, link.Reject.UNKNOWN_STREAM, problem)
            return
        journal = stream.journal
        for name, has in (
            ("from_index", journal.num_kept_tokens),
            ("num_prompt_logprobs", journal.num_prompt_logprobs),
        ):
            if not 0 <= (value := getattr(attach, name)) <= has:
                problem = f"is {value}; the stream has {has}"
                self._reject(connection, attach.request_id, link.Reject.INVALID, problem, name)
                return
        if stream.connection is not None and stream.connection != connection:
            problem = "another router has attached to the stream"
            self._reject(stream.connection, attach.request_id, link.Reject.TAKEN_OVER, problem)
        self._detach(stream)
        stream.connection = connection
        journal.rewind(attach.from_index, attach.num_prompt_logprobs)
        outbox = self._outbox(connection)
        if not journal.finished:
            stream.expires_at = None
            outbox.running.add(attach.request_id)
        if journal.has_news:
            outbox.news[attach.request_id] = None

    def disconnect(self, connection: int, now: float) -> None:
        """The connection is gone: its streams are orphans until someone attaches."""
        self._outboxes.pop(connection, None)
        for stream in self._streams.values():
            if stream.connection == connection:
                stream.connection = None
                stream.expires_at = now + self._limits.orphan_grace_s

    def on_step(self, event: link.EngineEvent, now: float) -> None:
        """Take what one engine step made."""
        if event.HasField("stats"):
            self._stats = event.stats
            self._admission.observe_rate(now, event.stats.num_prompt_tokens)
        for delta in event.deltas:
            stream = self._unfinished.get(delta.request_id)
            if stream is None:
                continue  # made before the engine heard of the stream's end
            stream.journal.push(delta)
            if stream.journal.finished and not delta.finish_reason:  # by a stop string
                self._command.abort.append(stream.engine_id)
            self._after_push(stream, now)

    def take(self, connection: int) -> link.ReplicaFrame:
        """What the connection has not been told yet, once; as much of it as a frame holds."""
        outbox = self._outbox(connection)
        frame = link.ReplicaFrame(rejects=outbox.rejects)
        outbox.rejects = []
        room = FRAME_TOKENS
        for request_id in list(outbox.news):
            journal = self._streams[request_id].journal
            delta = journal.take(room)
            frame.deltas.append(delta)
            if not journal.has_news:
                del outbox.news[request_id]
            room -= len(delta.token_ids) + len(delta.prompt_logprobs)
            if room <= 0:
                break
        return frame

    def take_command(self) -> link.EngineCommand | None:
        """What the engine has to be told, once; None for nothing."""
        if not self._command.submit and not self._command.abort:
            return None
        command, self._command = self._command, link.EngineCommand()
        return command

    def expire(self, now: float) -> None:
        """Drop what nobody came back for. Costs O(streams); call it every now and then."""
        for stream in list(self._streams.values()):
            is_due = stream.expires_at is not None and stream.expires_at <= now
            if is_due and not self._is_unread(stream):
                self._drop(stream)

    def refuse(self, reason: str) -> None:
        """Accept no new request from now on; running streams go on."""
        self._refusal = reason

    def lose(self, problem: str, now: float) -> None:
        """The engine is gone: end every unfinished stream, and accept no more."""
        self.refuse(problem)
        for stream in list(self._unfinished.values()):
            stream.journal.lose(problem)
            self._after_push(stream, now)
        self._command = link.EngineCommand()

    def _after_push(self, stream: _Stream, now: float) -> None:
        """Account for a stream's news, and for its end."""
        journal = stream.journal
        if journal.num_kept_tokens or journal.finished:
            self._admission.leave(journal.request_id)
        if journal.finished:
            del self._unfinished[stream.engine_id]
            stream.expires_at = max(stream.expires_at or 0.0, now + self._limits.orphan_grace_s)
        if stream.connection is not None:
            outbox = self._outbox(stream.connection)
            outbox.news[journal.request_id] = None
            if journal.finished:
                outbox.running.discard(journal.request_id)

    def _is_unread(self, stream: _Stream) -> bool:
        """Whether its reader is there, and has not taken the last of it yet."""
        if stream.connection is None:
            return False
        return stream.journal.request_id in self._outbox(stream.connection).news

    def _drop(self, stream: _Stream) -> None:
        """Forget a stream, and stop the engine's work on it."""
        request_id = stream.journal.request_id
        if self._unfinished.pop(stream.engine_id, None) is not None:
            self._command.abort.append(stream.engine_id)
        self._admission.leave(request_id)
        self._detach(stream)
        del self._streams[request_id]

    def _detach(self, stream: _Stream) -> None:
        if stream.connection is not None:
            outbox = self._outbox(stream.connection)
            outbox.news.pop(stream.journal.request_id, None)
            outbox.running.discard(stream.journal.request_id)

    def _outbox(self, connection: int) -> _Outbox:
        return self._outboxes.setdefault(connection, _Outbox())

    def _reject(
        self,
        connection: int,
        request_id: str,
        reason: link.Reject.Reason,
        message: str,
        param: str = "",
    ) -> None:
        self._outbox(connection).rejects.append(
            link.Reject(request_id=request_id, reason=reason, message=message, param=param)
        )
