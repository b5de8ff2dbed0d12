"""The Serve deployment of a replica: places it, checks it, and tells routers where it listens."""

from __future__ import annotations

import os

import ray
from ray import serve

from cluster.config import DeployConfig
from cluster.replica.replica import Replica
from qwen3_ray.errors import EngineError


class Front:
    """Front of one engine. Knows no torch; requests come over the link, never through Serve.

    Serve runs it on an event loop in a thread that is not the main one. Its methods are
    coroutines so that Serve runs all of them there.
    """

    _replica: Replica | None = None

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, config: DeployConfig, link_token: str
    ) -> None:
        """Return once the engine is loaded, warm, and has answered a request.

        Raises:
            ConfigError: a setting or the checkpoint cannot work.
            EngineError: the ranks did not start, or the first generation failed.
        """
        placement_group = ray.util.get_current_placement_group()
        if placement_group is None:
            raise EngineError("a replica needs a placement group: a bundle for it and each rank")
        self._replica = await Replica.start(
            config,
            link_token=link_token,
            replica_id=serve.get_replica_context().replica_id.unique_id,
            ip_address=ray.util.get_node_ip_address(),
            placement_group=placement_group,
            leave=_leave,
        )

    async def record_replica_metadata(self) -> dict[str, str]:
        """Where routers reach this replica; Serve pushes it to them."""
        return {"link": self._running().address}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The load that scaling policies look at."""
        load = self._running().load()
        return {
            "waiting_tokens": float(load.num_waiting_tokens),
            "num_running": float(load.num_running),
            "kv_cache_usage": load.kv_cache_usage,
        }

    async def check_health(self) -> None:
        """Return if the engine makes progress; Serve replaces a replica whose check raises.

        Raises:
            EngineError: the engine is gone, or its step is older than its budget.
        """
        self._running().require_progress()

    async def __del__(self) -> None:
        """Let running streams end (for a time), then stop the ranks."""
        replica, self._replica = self._replica, None
        if replica is not None:
            await replica.stop()

    def _running(self) -> Replica:
        if self._replica is None:
            raise EngineError("the replica has shut down")
        return self._replica


def _leave() -> None:
    """End the process at once: Serve sees a dead replica sooner than an unhealthy one."""
    os._exit(1)
