"""The ranks of one engine: Ray actors beside the front, in the replica's placement group."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.ops.resources import replica_bundles
from cluster.replica.channel import FrontChannel
from cluster.replica.rank_worker import RankWorker
from protos.v1.link_pb2 import EngineCommand, EngineEvent, EngineReady
from qwen3_ray.config import EngineConfig
from qwen3_ray.errors import EngineError, Qwen3RayError

SOCKET_NAME = "front.sock"
STOP_LIMIT_S = 3.0
FAREWELL_LIMIT_S = 5.0
"""Rank 0's socket closes before Ray tells why its process ended; wait this long for the reason."""

logger = logging.getLogger(__name__)


class RankGroup:
    """Actors, one per rank, that live and die together, and the channel to rank 0.

    One call runs on each actor for as long as the rank lives: its end is the first sign that
    the rank is gone, and then the whole group is lost.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._channel = FrontChannel(directory / SOCKET_NAME)
        self._actors: list[ActorHandle[RankWorker]] = []
        self._runs: list[asyncio.Task[None]] = []
        self.ready = EngineReady()
        """What the engine said about itself, after `start`."""

    @classmethod
    async def start(
        cls, config: EngineConfig, *, replica_id: str, placement_group: PlacementGroup
    ) -> RankGroup:
        """Start the ranks in the group's bundles 1, 2, ... and wait until they are warm.

        Raises:
            Qwen3RayError: as the rank that failed first has raised it.
            EngineError: a rank ended in another way.
        """
        group = cls(Path(tempfile.mkdtemp(prefix="qwen3-ray-")))
        try:
            await group._channel.listen()
            for rank in range(config.tensor_parallel_size):
                group._start_rank(rank, config, replica_id, placement_group)
            group.ready = (await group._next_event()).ready
        except BaseException:
            await group.kill()
            raise
        return group

    def send(self, command: EngineCommand) -> None:
        """Queue a command for rank 0; never waits."""
        self._channel.send(command)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """The engine's steps, for as long as the group lives.

        Raises:
            Qwen3RayError: as the rank that ended the group has raised it.
            EngineError: a rank ended in another way, or sent what is no event.
        """
        while True:
            yield await self._next_event()

    async def stop(self) -> None:
        """Ask the ranks to end, and kill those that do not in time."""
        self.send(EngineCommand(stop=True))
        await asyncio.wait(self._runs, timeout=STOP_LIMIT_S)
        await self.kill()

    async def kill(self) -> None:
        """End every rank now, and remove what the group has on disk; idempotent."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        for task in self._runs:
            task.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        await self._channel.close()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def _start_rank(
        self, rank: int, config: EngineConfig, replica_id: str, placement_group: PlacementGroup
    ) -> None:
        bundle = replica_bundles(1, "cuda" if config.device == "cuda" else "cpu")[1]
        worker_class = ray.remote(RankWorker).options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0.0),
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group, placement_group_bundle_index=rank + 1
            ),
        )
        actor = worker_class.remote(config, rank, self._directory, self._channel.path, replica_id)
        assert isinstance(actor, ActorHandle)  # noqa: S101  (Ray's types allow for the class too)
        self._actors.append(actor)
        self._runs.append(asyncio.create_task(_run(rank, actor)))

    async def _next_event(self) -> EngineEvent:
        reading = asyncio.create_task(self._channel.read())
        try:
            await asyncio.wait((reading, *self._runs), return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and (event := reading.result()) is not None:
                return event
            await asyncio.wait(
                self._runs, timeout=FAREWELL_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            reading.cancel()
        raise self._reason()

    def _reason(self) -> Qwen3RayError:
        """Why the group is lost: what the first rank that ended has raised."""
        for task in self._runs:
            if task.done() and isinstance(error := task.exception(), Qwen3RayError):
                return error
        return EngineError("rank 0 closed its channel")


async def _run(rank: int, actor: ActorHandle[RankWorker]) -> None:
    """Keep the rank's one call open. Always raises: a rank ends only when it is stopped."""
    try:
        await actor.run.remote()
    except RayTaskError as error:
        if isinstance(error.cause, Qwen3RayError):
            raise error.cause from None
        raise EngineError(f"rank {rank} failed: {error.cause!r}") from error
    except RayError as error:
        logger.exception("rank %d died", rank)
        raise EngineError(f"rank {rank} died") from error
    raise EngineError(f"rank {rank} ended")
