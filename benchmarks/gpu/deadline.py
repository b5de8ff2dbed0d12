"""How much time is left. Knows no stages."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """A moment at which work should have ended; nothing is interrupted."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def remaining_s(self) -> float:
        """Negative once it has passed."""
        return self._end - self._clock()

    def has(self, seconds: float) -> bool:
        """Whether so much time is left."""
        return self.remaining_s >= seconds

    def part(self, seconds: float) -> Deadline:
        """One that passes in `seconds`, or with this one if that is sooner."""
        return Deadline(min(seconds, self.remaining_s), self._clock)
