"""One engine served: its ranks, its stream table, and the link server in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from cluster.config import DeployConfig
from cluster.link.client import LinkClient
from cluster.link.protocol import LINK_VERSION
from cluster.link.requests import submit_message
from cluster.link.server import LinkServer
from cluster.replica.admission import Limits
from cluster.replica.health import Progress
from cluster.replica.host import ReplicaHost
from cluster.replica.ranks import RankGroup
from cluster.replica.streams import NewProcessor, StreamTable
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import EngineError, Qwen3RayError
from qwen3_ray.model.hub import resolve_model_dir
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.output_processor import OutputProcessor
from qwen3_ray.text.tokenizer import find_tokenizer

EXPIRY_PERIOD_S = 0.25
DRAIN_LIMIT_S = 15.0
"""Running streams may go on for this long when the replica is told to leave."""
CANARY_TOKENS = 4
CANARY_LIMIT_S = 120.0

logger = logging.getLogger(__name__)


class Replica:
    """Runs from `start`, which returns once the engine has answered a request, to `stop`.

    Losing a rank ends every stream with LOST (routers go on elsewhere) and then calls `leave`.
    """

    def __init__(
        self, ranks: RankGroup, host: ReplicaHost, server: LinkServer, leave: Callable[[], None]
    ) -> None:
        self._ranks = ranks
        self._host = host
        self._server = server
        self._leave = leave
        self._stepped = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def start(
        cls,
        config: DeployConfig,
        *,
        link_token: str,
        replica_id: str,
        ip_address: str,
        placement_group: PlacementGroup,
        leave: Callable[[], None],
    ) -> Replica:
        """Load and warm the ranks, listen on `ip_address`, and try a generation over the link.

        `placement_group` holds a bundle for the front, then one for each rank. `leave` ends
        this process: the group it fronts is gone.

        Raises:
            ConfigError: a setting or the checkpoint cannot work, as a rank has found.
            EngineError: the ranks did not start, or the first generation failed.
        """
        model_dir = await asyncio.to_thread(resolve_model_dir, config.model)
        new_processor = await asyncio.to_thread(_processor_factory, model_dir)
        ranks = await RankGroup.start(
            config.engine_config(model_dir), replica_id=replica_id, placement_group=placement_group
        )
        try:
            progress = Progress()
            table = StreamTable(_limits(config, ranks.ready), new_processor)
            host = ReplicaHost(table, progress, _hello(ranks.ready, replica_id), ranks.send)
            server = await LinkServer.start(host, link_token, ip_address=ip_address)
        except BaseException:
            await ranks.stop()
            raise
        replica = cls(ranks, host, server, leave)
        try:
            await _canary(server.address, link_token, ranks.ready)
        except BaseException:
            await replica.stop(drain_limit_s=0.0)
            raise
        return replica

    @property
    def address(self) -> str:
        """Where routers dial: "host:port"."""
        return self._server.address

    def load(self) -> link.Load:
        """The replica's load now."""
        return self._host.load()

    def require_progress(self) -> None:
        """Return if all is well.

        Raises:
            EngineError: the engine is gone, or its step is older than its budget.
        """
        self._host.require_progress()

    async def stop(self, *, drain_limit_s: float = DRAIN_LIMIT_S) -> None:
        """Refuse new requests, let running ones end (for a time), then stop the ranks."""
        self._host.drain("the replica is shutting down")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_limit_s):
                await self._drained()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._host.lose("the replica has shut down")
        self._server.notify()
        await asyncio.gather(self._server.stop(), self._ranks.stop())

    async def _run(self) -> None:
        """Serve until the engine is lost, then leave."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump())
                tasks.create_task(self._expire())
        except* Exception as group:
            logger.exception("the engine is lost")
            self._host.fail("; ".join(map(str, group.exceptions)))
        self._host.lose("the replica has lost its engine")
        self._server.notify()
        # The rest of the group may sit in a collective for ever: no orderly stop.
        await self._ranks.kill()
        await self._server.stop()
        self._leave()

    async def _pump(self) -> None:
        """Engine steps into the table, and a frame to every router that has news."""
        async for event in self._ranks.events():
            self._host.on_step(event)
            self._server.notify()
            self._stepped.set()

    async def _drained(self) -> None:
        while self._host.num_unfinished:  # changes with a step; an idle engine makes one a second
            self._stepped.clear()
            await self._stepped.wait()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_PERIOD_S)
            self._host.expire()


def _processor_factory(model_dir: Path) -> NewProcessor:
    tokenizer = find_tokenizer(model_dir)
    eos_token_ids = ModelConfig.from_dir(model_dir).eos_token_ids

    def new_processor(params: SamplingParams) -> OutputProcessor | None:
        if tokenizer is None:
            return None
        return OutputProcessor.of(params, tokenizer, eos_token_ids=eos_token_ids)

    return new_processor


def _limits(config: DeployConfig, ready: link.EngineReady) -> Limits:
    return Limits(
        max_model_len=ready.max_model_len,
        vocab_size=ready.vocab_size,
        max_waiting_tokens=config.max_waiting_tokens,
        max_waiting_requests=config.max_waiting_requests,
        orphan_grace_s=config.orphan_grace_s,
    )


def _hello(ready: link.EngineReady, replica_id: str) -> link.Hello:
    return link.Hello(
        protocol_version=LINK_VERSION,
        replica_id=replica_id,
        epoch=secrets.token_hex(8),
        model=ready.model,
        numerics_fingerprint=ready.numerics_fingerprint,
        exact=ready.exact,
        block_size=ready.block_size,
        max_model_len=ready.max_model_len,
        vocab_size=ready.vocab_size,
        tensor_parallel_size=ready.tensor_parallel_size,
    )


async def _canary(address: str, link_token: str, ready: link.EngineReady) -> None:
    """Generate a few tokens the way a router does.

    Raises:
        EngineError: no complete answer came.
    """
    num_tokens = min(CANARY_TOKENS, ready.max_model_len - 1)
    client = LinkClient(address, link_token)
    params = SamplingParams(temperature=0, max_tokens=num_tokens, seed=0, ignore_eos=True)
    submit = submit_message(
        GenerateRequest(request_id="canary", prompt_token_ids=(0,), params=params)
    )
    num_received = 0
    try:
        async with asyncio.timeout(CANARY_LIMIT_S):
            await client.connect()
            async for delta in client.open(submit):
                num_received += len(delta.token_ids)
    except (Qwen3RayError, TimeoutError) as error:
        raise EngineError(f"the first generation failed: {error or 'timeout'}") from error
    finally:
        await client.close()
    if num_received != num_tokens:
        raise EngineError(f"the first generation gave {num_received} tokens, not {num_tokens}")
