"""Replicas without a network or an engine: what a router can be tried against."""

from __future__ import annotations

import asyncio
import hashlib

from protos.v1 import link_pb2 as link
from qwen3_ray.errors import RequestError, UnavailableError


class FakeReplica:
    """A replica whose output is a function of the request alone, request id aside.

    Its tokens are the letters a to z, one in each delta. Every field of the request counts: two
    requests that differ anywhere give different texts.
    """

    def __init__(
        self,
        replica_id: str = "replica-1",
        *,
        model: str = "fake",
        vocab_size: int = 256,
        max_model_len: int = 64,
    ) -> None:
        self.hello = link.Hello(
            protocol_version=1,
            replica_id=replica_id,
            epoch=f"{replica_id}-epoch",
            model=model,
            numerics_fingerprint=f"{replica_id}-numerics",
            exact=True,
            block_size=16,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            tensor_parallel_size=2,
        )
        self.load = link.Load()
        self.submits: list[link.Submit] = []
        self.aborted: list[str] = []
        """Ids of the requests whose streams were closed before their end."""
        self.refusal: Exception | None = None
        """Raised in place of every first delta."""
        self.break_after: int | None = None
        """Tokens after which the link breaks."""
        self.hold_after: int | None = None
        """Tokens after which a stream stands still until `released`."""
        self.released = asyncio.Event()
        self._news = asyncio.Event()

    def open(self, submit: link.Submit) -> FakeStream:
        self.submits.append(submit)
        self._news.set()
        return FakeStream(self, submit)

    def note_abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._news.set()

    async def wait(self, *, num_submits: int = 0, num_aborted: int = 0) -> None:
        """Return once that many requests have come and been aborted; 10 s at most."""
        async with asyncio.timeout(10):
            while len(self.submits) < num_submits or len(self.aborted) < num_aborted:
                self._news.clear()
                await self._news.wait()


class FakeStream:
    """The deltas of one request to a `FakeReplica`."""

    def __init__(self, replica: FakeReplica, submit: link.Submit) -> None:
        self._replica = replica
        self._submit = submit
        self._key = _key_of(submit)
        self._text = ""
        self._finished = False

    async def __anext__(self) -> link.StreamDelta:
        replica, index = self._replica, len(self._text)
        if self._finished:
            raise StopAsyncIteration
        if index == replica.hold_after:
            await replica.released.wait()
        await asyncio.sleep(0)
        if index == 0 and replica.refusal is not None:
            self._finished = True
            raise replica.refusal
        if index == replica.break_after:
            self._finished = True
            raise UnavailableError("the link broke")
        return self._next_delta(index)

    async def aclose(self) -> None:
        if not self._finished:
            self._finished = True
            self._replica.note_abort(self._submit.request_id)

    def _next_delta(self, index: int) -> link.StreamDelta:
        token_id = ord("a") + self._key[index % len(self._key)] % 26
        self._text += chr(token_id)
        delta = link.StreamDelta(
            request_id=self._submit.request_id,
            from_index=index,
            token_ids=[token_id],
            text=chr(token_id),
        )
        sampling = self._submit.sampling
        stop = next((text for text in sampling.stop if self._text.endswith(text)), None)
        if stop is not None:
            delta.stop_string, delta.text, delta.finish_reason = stop, "", link.STOP
        elif token_id in sampling.stop_token_ids:
            delta.stop_token_id, delta.finish_reason = token_id, link.STOP
        elif index + 1 == sampling.max_tokens:
            delta.finish_reason = link.LENGTH
        self._finished = delta.finish_reason != link.UNFINISHED
        return delta


class FakeLinks:
    """A list of replicas that a test may change at any time."""

    def __init__(self, *replicas: FakeReplica) -> None:
        self.ready: dict[str, FakeReplica] = {}
        self._changed = asyncio.Event()
        for replica in replicas:
            self.add(replica)

    def add(self, replica: FakeReplica) -> None:
        self.ready[replica.hello.replica_id] = replica
        self._changed.set()

    async def wait_any(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class FakeTokenizer:
    """One token for each byte of the text."""

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise RequestError("prompt", "is not Unicode text") from None


def _key_of(submit: link.Submit) -> bytes:
    nameless = link.Submit()
    nameless.CopyFrom(submit)
    nameless.request_id = ""
    return hashlib.sha256(nameless.SerializeToString(deterministic=True)).digest()
