"""Links of a router to every replica it has been told of."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.link.client import LinkClient
from cluster.link.protocol import SILENCE_LIMIT_S


class Links:
    """Keeps one link to each listed replica, and dials again (with backoff) when one breaks.

    Use it on one event loop. A replica that leaves the list takes no new streams (it is not in
    `ready`), but its link stays until its streams have ended.
    """

    def __init__(self, token: str, *, silence_limit_s: float = SILENCE_LIMIT_S) -> None:
        raise NotImplementedError

    def set_members(self, members: Mapping[str, str]) -> None:
        """Replace the list: replica id -> "host:port"."""
        raise NotImplementedError

    @property
    def ready(self) -> dict[str, LinkClient]:
        """Connected clients of listed replicas, by replica id; a fresh dict."""
        raise NotImplementedError

    async def wait_any(self, timeout_s: float) -> bool:
        """Wait until a replica is ready; False when the time is up."""
        raise NotImplementedError

    async def close(self) -> None:
        """Hang up everywhere; idempotent."""
        raise NotImplementedError
