"""The answers to one prompt on their way from a replica to a client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from cluster.link.logprobs import logprobs_of
from cluster.router.choices import ChoiceStreams
from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.journal import JournalEntry
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import EngineError
from qwen3_ray.request import FinishReason, TokenLogprobs, Usage

_FINISH_REASONS = {
    link.UNFINISHED: None,
    link.STOP: FinishReason.STOP,
    link.LENGTH: FinishReason.LENGTH,
}


class Generation(AsyncIterator[Chunk]):
    """The answers while they are made: the pieces of each in order, its last with a finish reason.

    Raises:
        UnavailableError: the replica is lost; what has arrived stays valid.
        EngineError: the engine failed on this request.
        RequestError: the engine found fault with it.
        RequestAbortedError: the replica dropped the request.
    """

    def __init__(
        self,
        request: InferenceRequest,
        entry: JournalEntry,
        streams: ChoiceStreams,
        *,
        model: str,
        fingerprint: str,
        prompt_text: str = "",
    ) -> None:
        """`prompt_text` is what the answers begin with, if the request wants an echo."""
        assert entry.params.seed is not None  # noqa: S101  (the router has drawn it)
        self.request = request
        self.id = entry.request_id
        self.created = int(time.time())
        self.seed = entry.params.seed
        self.model = model
        self.fingerprint = fingerprint
        """Numerics fingerprint of the replica that answers."""
        self.prompt_text = prompt_text
        self._entry = entry
        self._streams = streams
        self._ready: deque[Chunk] = deque()
        self._unfinished = set(range(entry.params.n))
        self._begun: set[int] = set()

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """As the model has seen them."""
        return self._entry.prompt_token_ids

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprobs]:
        """Of the prompt's tokens from the second on, if wanted; complete after `begin`."""
        return self._entry.prompt_logprobs

    @property
    def usage(self) -> Usage:
        """Tokens taken so far."""
        return self._entry.usage

    @property
    def finished(self) -> bool:
        """Every answer is complete, and all of it was handed out."""
        return not self._unfinished and not self._ready

    async def begin(self) -> None:
        """Wait for the first answer's first token, or for its end."""
        while 0 not in self._begun:
            await self._read()

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if not self._unfinished:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    async def collect(self) -> list[Chunk]:
        """The rest of the answers, each as one piece, in the order of their indexes."""
        pieces: dict[int, list[Chunk]] = {}
        async for chunk in self:
            pieces.setdefault(chunk.index, []).append(chunk)
        return [_joined(pieces[index]) for index in sorted(pieces)]

    async def aclose(self) -> None:
        """Stop the work on what is unfinished; idempotent."""
        await self._streams.aclose()

    async def _read(self) -> None:
        """Take the next delta in, and make a piece of it if it is one of an answer."""
        choice, delta = await self._streams.__anext__()
        entry = self._entry
        token_ids = tuple(delta.token_ids)
        if choice == 0:
            entry.num_cached_tokens = delta.num_cached_tokens
            if delta.prompt_logprobs:
                prompt_logprobs = list(map(logprobs_of, delta.prompt_logprobs))
                entry.append_prompt_logprobs(delta.prompt_logprobs_from, prompt_logprobs)
        entry.append(choice, delta.from_index, token_ids)
        finish_reason = _FINISH_REASONS[delta.finish_reason]
        if not token_ids and not delta.text and finish_reason is None:
            return
        is_first = choice not in self._begun
        self._begun.add(choice)
        if finish_reason is not None:
            self._unfinished.discard(choice)
        self._ready.append(
            Chunk(
                index=choice,
                is_first=is_first,
                text=self.prompt_text + delta.text if is_first else delta.text,
                token_ids=token_ids,
                logprobs=self._logprobs(delta),
                finish_reason=finish_reason,
                stop_reason=_stop_reason(delta),
            )
        )

    def _logprobs(self, delta: link.StreamDelta) -> tuple[TokenLogprobs, ...]:
        if self._entry.params.logprobs is None:
            return ()
        if len(delta.logprobs) != len(delta.token_ids):
            raise EngineError(
                f"replica {self._entry.replica_id} sent {len(delta.logprobs)} logprobs for "
                f"{len(delta.token_ids)} tokens"
            )
        return tuple(map(logprobs_of, delta.logprobs))


def _joined(pieces: Sequence[Chunk]) -> Chunk:
    return replace(
        pieces[-1],
        is_first=pieces[0].is_first,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
    )


def _stop_reason(delta: link.StreamDelta) -> int | str | None:
    match delta.WhichOneof("stop_reason"):
        case "stop_string":
            return delta.stop_string
        case "stop_token_id":
            return delta.stop_token_id
        case _:
            return None
