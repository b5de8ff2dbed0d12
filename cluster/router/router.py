"""The service behind both skins: validate, tokenise, choose a replica, relay its stream.

Knows nothing of HTTP, of the public gRPC service or of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from cluster.link.protocol import BUSY_HEARTBEAT_S
from cluster.link.requests import submit_message
from cluster.router.admission import Refusal, may_try_again, verdict
from cluster.router.choices import ChoiceStreams, DeltaStream
from cluster.router.generation import Generation
from cluster.router.inference import InferenceRequest, ModelInfo
from cluster.router.intake import Intake, Tokenizer
from cluster.router.journal import JournalEntry
from cluster.router.routing import ReplicaView, SentTokens, ranked
from protos.v1 import link_pb2 as link
from qwen3_ray import __version__
from qwen3_ray.errors import OverloadedError, UnavailableError
from qwen3_ray.model.generation_config import SamplingDefaults

HOLD_S = 10.0
"""How long a request waits for a replica: one that is replaced is gone for about 2 s."""
STALLED_AFTER_S = 60.0
"""A replica whose step is older than this makes no progress."""

_POLL_S = 0.05


class ReplicaLink(Protocol):
    """One replica, as `cluster.link.client.LinkClient` shows it."""

    @property
    def hello(self) -> link.Hello: ...
    @property
    def load(self) -> link.Load: ...
    def open(self, submit: link.Submit) -> DeltaStream: ...


class ReplicaLinks(Protocol):
    """The replicas, as `cluster.link.links.Links` keeps them."""

    @property
    def ready(self) -> Mapping[str, ReplicaLink]: ...
    async def wait_any(self, timeout_s: float) -> bool: ...


class Router:
    """Sends each request to the replica with the least work and relays what it answers.

    Use it on one event loop.
    """

    def __init__(
        self,
        links: ReplicaLinks,
        *,
        model: str,
        tokenizer: Tokenizer | None,
        default_sampling: SamplingDefaults | None = None,
        hold_s: float = HOLD_S,
    ) -> None:
        """`default_sampling` is for parameters that requests leave open."""
        self.tokenizer = tokenizer
        self.default_sampling: SamplingDefaults = default_sampling or {}
        self._links = links
        self._model = model
        self._intake = Intake(model=model, tokenizer=tokenizer)
        self._hold_s = hold_s
        self._sent = SentTokens(covered_after_s=2.5 * BUSY_HEARTBEAT_S)
        self._hello = link.Hello()  # of the last replica seen; all are started with one config

    @property
    def ready(self) -> bool:
        """A replica can be reached."""
        return bool(self._links.ready)

    @property
    def healthy(self) -> bool:
        """A replica can be reached and makes progress."""
        return any(
            replica.load.step_age_s < STALLED_AFTER_S for replica in self._links.ready.values()
        )

    @property
    def model_info(self) -> ModelInfo:
        """What is served here, as the replicas tell it."""
        replicas = self._links.ready
        hello = self._last_hello(replicas)
        return ModelInfo(
            model=self._model,
            max_model_len=hello.max_model_len,
            vocab_size=hello.vocab_size,
            tensor_parallel_size=hello.tensor_parallel_size,
            numerics=("exact" if hello.exact else "fast") if hello.epoch else "",
            numerics_fingerprint=hello.numerics_fingerprint,
            version=__version__,
            num_replicas=len(replicas),
            default_sampling=self.default_sampling,
        )

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[Generation]:
        """Open the answers to a prompt; the first token has been made. Leaving the block stops all.

        Raises:
            ModelNotFoundError: another model is served here.
            PromptTooLongError: the prompt leaves no room for one output token.
            RequestError: another field cannot be accepted; names it.
            OverloadedError: every replica is full.
            UnavailableError: no replica came up in time, or several broke before the first token.
        """
        prompt_token_ids = await self._intake.tokenize(request)
        entry = self._intake.accept(request, prompt_token_ids, await self._limits())
        generation = await self._start(request, entry)
        try:
            yield generation
        finally:
            await generation.aclose()

    async def _limits(self) -> link.Hello:
        """What the engine accepts; waits for a replica only if none was ever seen."""
        if not self._hello.epoch and not await self._links.wait_any(self._hold_s):
            raise UnavailableError("no replica is ready")
        return self._last_hello(self._links.ready)

    def _last_hello(self, replicas: Mapping[str, ReplicaLink]) -> link.Hello:
        self._hello = next((replica.hello for replica in replicas.values()), self._hello)
        return self._hello

    async def _start(self, request: InferenceRequest, entry: JournalEntry) -> Generation:
        """Submit to the cheapest replica, or the next one while they refuse."""
        refusals: list[Refusal] = []
        asked: list[ReplicaLink] = []  # a replica that comes back has a new link
        until_s = time.monotonic() + self._hold_s
        while may_try_again(refusals):
            replica_id = self._cheapest(len(entry.prompt_token_ids), asked)
            if replica_id is None:
                full = any(isinstance(refusal, OverloadedError) for refusal in refusals)
                if full or not await self._wait_for_another(asked, until_s):
                    break
                continue
            replica = self._links.ready[replica_id]
            asked.append(replica)
            try:
                return await self._submit(request, entry, replica_id, replica)
            except (OverloadedError, UnavailableError) as refusal:
                refusals.append(refusal)
        raise verdict(refusals)

    def _cheapest(self, num_prompt_tokens: int, asked: Sequence[ReplicaLink]) -> str | None:
        now_s = time.monotonic()
        views = [
            ReplicaView(
                replica_id=replica_id,
                num_waiting_tokens=replica.load.num_waiting_tokens,
                num_running=replica.load.num_running,
                num_sent_tokens=self._sent.total(replica_id, now_s=now_s),
            )
            for replica_id, replica in self._links.ready.items()
            if replica not in asked
        ]
        return next(iter(ranked(views, num_prompt_tokens)), None)

    async def _wait_for_another(self, asked: Sequence[ReplicaLink], until_s: float) -> bool:
        """Wait for a replica that has not been asked; False when the time is up."""
        while (left_s := until_s - time.monotonic()) > 0:
            if not await self._links.wait_any(left_s):
                return False
            if any(replica not in asked for replica in self._links.ready.values()):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _submit(
        self,
        request: InferenceRequest,
        entry: JournalEntry,
        replica_id: str,
        replica: ReplicaLink,
    ) -> Generation:
        """Give the request to one replica and wait for its first token (or its refusal)."""
        entry.begin(replica_id)
        streams = [replica.open(submit_message(choice)) for choice in entry.requests]
        generation = Generation(
            request,
            entry,
            ChoiceStreams(streams),
            model=self._model,
            fingerprint=replica.hello.numerics_fingerprint,
            prompt_text=self._intake.prompt_text(request, entry.prompt_token_ids),
        )
        num_tokens = len(entry.prompt_token_ids)
        self._sent.add(replica_id, entry.request_id, num_tokens, now_s=time.monotonic())
        try:
            await generation.begin()
        except BaseException:  # the client left while it waited, or the replica refused
            await generation.aclose()
            raise
        finally:
            self._sent.settle(replica_id, entry.request_id)
        return generation
