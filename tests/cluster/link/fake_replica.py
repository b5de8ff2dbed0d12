"""A replica without an engine process: real links, and an engine that the test steps by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from cluster.link.protocol import LINK_VERSION
from cluster.link.server import LinkServer
from cluster.replica.admission import Limits
from cluster.replica.health import Progress
from cluster.replica.host import ReplicaHost
from cluster.replica.streams import StreamTable
from protos.v1 import link_pb2 as link
from qwen3_ray.text.output_processor import OutputProcessor

T = TypeVar("T")

TOKEN = "a-secret"
NUM_CACHED_TOKENS = 2
"""Of every prompt, the engine says."""
LIMIT_S = 10.0
"""No wait in these tests takes longer, or it fails."""


class FakeEngine:
    """Answers each request with the bytes of a text, one each step. Steps only when told to.

    A prompt whose logprobs are wanted takes a step of its own before.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.running: dict[str, tuple[link.Submit, int]] = {}
        """Requests with the number of their steps; the first one's is 0."""
        self.aborted: list[str] = []
        self.commands: list[link.EngineCommand] = []
        self.num_steps = 0

    def take(self, command: link.EngineCommand) -> None:
        self.commands.append(command)
        for submit in command.submit:
            scores = submit.sampling.HasField("prompt_logprobs")
            self.running[submit.request_id] = (submit, -1 if scores else 0)
        for request_id in command.abort:
            self.aborted.append(name_of(request_id))
            self.running.pop(request_id, None)

    def step(self) -> link.EngineEvent:
        self.num_steps += 1
        event = link.EngineEvent(stats=link.EngineStats(num_steps=self.num_steps))
        for request_id, (submit, num_done) in list(self.running.items()):
            answer = self.answers.get(name_of(request_id), b"abcdefgh")[
                : submit.sampling.max_tokens
            ]
            is_last = num_done + 1 == len(answer)
            delta = event.deltas.add(
                request_id=request_id,
                finish_reason=link.LENGTH if is_last else link.UNFINISHED,
            )
            if num_done < 0:
                delta.prompt_logprobs.extend(map(entry_of, submit.prompt_token_ids[1:]))
            else:
                delta.token_ids.append(answer[num_done])
                if submit.sampling.HasField("logprobs"):
                    delta.logprobs.append(entry_of(answer[num_done]))
            if num_done <= 0:
                delta.num_cached_tokens = NUM_CACHED_TOKENS
            if is_last:
                del self.running[request_id]
            else:
                self.running[request_id] = (submit, num_done + 1)
        return event


def entry_of(token_id: int) -> link.TokenLogprobs:
    """Logprobs that tell which token they belong to."""
    return link.TokenLogprobs(
        token_id=token_id,
        logprob=-token_id / 8,
        rank=1,
        top_ids=[token_id],
        top_logprobs=[-token_id / 8],
    )


def name_of(engine_id: str) -> str:
    return engine_id.partition("#")[0]


class FakeReplica:
    """A host with its server. `step` makes the engine's next step and has it sent."""

    def __init__(self, **limits: float) -> None:
        self.engine = FakeEngine()
        values = {
            "max_model_len": 100_000,
            "vocab_size": 200_000,
            "max_waiting_tokens": 10_000_000,
            "max_waiting_requests": 1_000,
            **{name: int(value) for name, value in limits.items() if name != "orphan_grace_s"},
        }
        table = StreamTable(
            Limits(**values, orphan_grace_s=limits.get("orphan_grace_s", 60.0)),
            lambda params: OutputProcessor(lambda id_: bytes([id_ % 256]), params.stop_strings),
        )
        hello = link.Hello(
            protocol_version=LINK_VERSION,
            replica_id="r1",
            epoch="e1",
            model="m",
            max_model_len=100_000,
            vocab_size=200_000,
        )
        self.host = ReplicaHost(table, Progress(), hello, self.engine.take)
        self.server: LinkServer

    @property
    def address(self) -> str:
        return self.server.address

    def step(self) -> None:
        self.host.on_step(self.engine.step())
        self.server.notify()


@asynccontextmanager
async def running_replica(**limits: float) -> AsyncIterator[FakeReplica]:
    replica = FakeReplica(**limits)
    replica.server = await LinkServer.start(replica.host, TOKEN, ip_address="127.0.0.1")
    try:
        yield replica
    finally:
        await replica.server.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event of its own)
            await asyncio.sleep(0.005)


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(LIMIT_S):
        return await awaitable


def make_submit(
    request_id: str, prompt: Sequence[int] = (1, 2), max_tokens: int = 8, stop: Sequence[str] = ()
) -> link.Submit:
    sampling = link.Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, stop=stop)
    return link.Submit(request_id=request_id, prompt_token_ids=prompt, sampling=sampling)
