"""Links of a router to every replica it has been told of."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.link.client import LinkClient
from cluster.link.protocol import SILENCE_LIMIT_S
from qwen3_ray.errors import UnavailableError

MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Member:
    """A listed replica: its address, the task that keeps its link, and the link while it is up."""

    replica_id: str
    address: str
    client: LinkClient | None = None
    task: asyncio.Task[None] | None = None


class Links:
    """Keeps one link to each listed replica, and dials again (with backoff) when one breaks.

    Use it on one event loop. A replica that leaves the list takes no new streams (it is not in
    `ready`), but its link stays until its streams have ended.
    """

    def __init__(self, token: str, *, silence_limit_s: float = SILENCE_LIMIT_S) -> None:
        self._token = token
        self._silence_limit_s = silence_limit_s
        self._members: dict[str, _Member] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()

    def set_members(self, members: Mapping[str, str]) -> None:
        """Replace the list: replica id -> "host:port"."""
        for replica_id, member in list(self._members.items()):
            if members.get(replica_id) != member.address:
                del self._members[replica_id]
                self._start_retiring(member)
        for replica_id, address in members.items():
            if replica_id not in self._members:
                member = _Member(replica_id, address)
                self._members[replica_id] = member
                member.task = asyncio.create_task(self._keep(member))
        self._update_ready()

    @property
    def ready(self) -> dict[str, LinkClient]:
        """Connected clients of listed replicas, by replica id; a fresh dict."""
        return {
            replica_id: member.client
            for replica_id, member in self._members.items()
            if member.client is not None and member.client.connected
        }

    async def wait_any(self, timeout_s: float) -> bool:
        """Wait until a replica is ready; False when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready:
                    self._ready.clear()
                    await self._ready.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Hang up everywhere; idempotent."""
        members, self._members = self._members, {}
        tasks = [member.task for member in members.values() if member.task is not None]
        tasks += self._retiring
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in members.values():
            if member.client is not None:
                await member.client.close()

    def _update_ready(self) -> None:
        if self.ready:
            self._ready.set()

    def _start_retiring(self, member: _Member) -> None:
        task = asyncio.create_task(self._retire(member))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, member: _Member) -> None:
        """Hang up on a replica that is no longer listed, once its streams have ended."""
        if member.task is not None:
            member.task.cancel()
        client = member.client
        if client is None:
            return
        try:
            await client.wait_idle()
        finally:
            await client.close()

    async def _keep(self, member: _Member) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            client = LinkClient(member.address, self._token, silence_limit_s=self._silence_limit_s)
            try:
                await client.connect()
            except UnavailableError as error:
                logger.info("replica %s not reached: %s", member.replica_id, error)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            else:
                backoff_s = MIN_BACKOFF_S
                member.client = client
                logger.info("linked to replica %s at %s", member.replica_id, member.address)
                self._update_ready()
                await client.wait_closed()
                logger.warning("the link to replica %s broke", member.replica_id)
                member.client = None
                await client.close()
            # Routers that lost the same replica must not all come back in the same instant.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
