"""Replicas without a network or an engine: what a router can be tried against."""

from __future__ import annotations

import asyncio
import hashlib

from protos.v1 import link_pb2 as link
from qwen3_ray.errors import RequestError, UnavailableError


class FakeReplica:
    """A replica whose output is a function of the request alone, request id aside.

    Its tokens are the letters a to z, one in each delta. Every field of the request counts: two
    requests that differ anywhere give different texts. Logprobs of the prompt come in deltas of
    their own, before the first token.
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
        self.num_cached_tokens = 0
        """What it says of every prompt."""
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
        self.refusal = replica.refusal
        self.num_cached_tokens = replica.num_cached_tokens
        self._num_scored = 1  # nothing is said of the prompt's first token
        self._text = ""
        self._finished = False

    async def __anext__(self) -> link.StreamDelta:
        replica, index = self._replica, len(self._text)
        if self._finished:
            raise StopAsyncIteration
        if index == replica.hold_after:
            await replica.released.wait()
        if index == 0 and self.refusal is not None:
            self._finished = True
            raise self.refusal
        await asyncio.sleep(0)
        if index == replica.break_after:
            self._finished = True
            raise UnavailableError("the link broke")
        return self._next_delta(index)

    async def aclose(self) -> None:
        if not self._finished:
            self._finished = True
            self._replica.note_abort(self._submit.request_id)

    def _next_delta(self, index: int) -> link.StreamDelta:
        submit, sampling = self._submit, self._submit.sampling
        delta = link.StreamDelta(
            request_id=submit.request_id,
            from_index=index,
            num_cached_tokens=self.num_cached_tokens,
        )
        if sampling.HasField("prompt_logprobs") and self._score(delta):
            return delta
        if sampling.max_tokens:
            self._add_token(delta, ord("a") + self._key[index % len(self._key)] % 26)
        if len(self._text) == sampling.max_tokens and not delta.finish_reason:
            delta.finish_reason = link.LENGTH
        self._finished = delta.finish_reason != link.UNFINISHED
        return delta

    def _score(self, delta: link.StreamDelta) -> bool:
        """Put logprobs of a few of the prompt's tokens into `delta`; False when there are none."""
        first, num_top = self._num_scored, self._submit.sampling.prompt_logprobs
        token_ids = self._submit.prompt_token_ids[first : first + 3]
        delta.prompt_logprobs.extend(fake_logprobs(id_, num_top) for id_ in token_ids)
        delta.prompt_logprobs_from = first
        self._num_scored += len(token_ids)
        return bool(token_ids)

    def _add_token(self, delta: link.StreamDelta, token_id: int) -> None:
        sampling = self._submit.sampling
        self._text += chr(token_id)
        delta.text = chr(token_id)
        delta.token_ids.append(token_id)
        if sampling.HasField("logprobs"):
            delta.logprobs.append(fake_logprobs(token_id, sampling.logprobs))
        stop = next((text for text in sampling.stop if self._text.endswith(text)), None)
        if stop is not None:
            delta.stop_string, delta.text, delta.finish_reason = stop, "", link.STOP
        elif token_id in sampling.stop_token_ids:
            delta.stop_token_id, delta.finish_reason = token_id, link.STOP


def fake_logprobs(token_id: int, num_top: int) -> link.TokenLogprobs:
    """Logprobs that follow from the id: it is the likeliest, or the second or third."""
    rank = 1 + token_id % 3
    ranking = [(token_id + other) % 128 for other in range(1, 21)]
    ranking.insert(rank - 1, token_id)
    return link.TokenLogprobs(
        token_id=token_id,
        logprob=-rank / 4,
        rank=rank,
        top_ids=ranking[:num_top],
        top_logprobs=[-place / 4 for place in range(1, num_top + 1)],
    )


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
    """One token for each byte of the text; id 0 is a special token."""

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise RequestError("prompt", "is not Unicode text") from None

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def output_bytes(self, token_id: int) -> bytes:
        return self.token_bytes(token_id) if token_id else b""


def _key_of(submit: link.Submit) -> bytes:
    nameless = link.Submit()
    nameless.CopyFrom(submit)
    nameless.request_id = ""
    return hashlib.sha256(nameless.SerializeToString(deterministic=True)).digest()
