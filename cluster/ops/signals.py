"""SIGINT and SIGTERM of the command line: the first asks to stop, the second insists."""

from __future__ import annotations

import signal
from threading import Event
from types import FrameType


class StopSignal:
    """Set by the first signal; a second one raises `SystemExit`, so that nothing is waited for."""

    def __init__(self) -> None:
        self._event = Event()

    def install(self) -> None:
        """Handle both signals from now on; again after code that put its own handlers in."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the first signal; True once it has come."""
        return self._event.wait(timeout_s)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._event.is_set():
            raise SystemExit(1)
        self._event.set()
