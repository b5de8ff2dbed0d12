"""Where Serve's news of replicas reaches a router: one listener for each process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from threading import Lock

Listener = Callable[[Mapping[str, str]], None]
"""Takes replica id -> link address ("host:port"), the whole list each time."""


class MemberBoard:
    """Hands the list from the thread that learns it to the event loop that uses it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._members: dict[str, str] = {}
        self._listener: tuple[asyncio.AbstractEventLoop, Listener] | None = None

    def listen(self, listener: Listener) -> None:
        """Call `listener` on the running event loop with each list, the present one included."""
        with self._lock:
            self._listener = (asyncio.get_running_loop(), listener)
            self._tell()

    def publish(self, members: Mapping[str, str]) -> None:
        """Replace the list; from any thread."""
        with self._lock:
            self._members = dict(members)
            self._tell()

    def _tell(self) -> None:
        if self._listener is not None:
            loop, listener = self._listener
            if not loop.is_closed():
                loop.call_soon_threadsafe(listener, dict(self._members))


BOARD = MemberBoard()
"""The board of this process: Serve makes the object that publishes, so nobody can pass it one."""
