"""Whether an engine makes progress: the age of its last step, against what a step may take."""

from __future__ import annotations

import time
from collections.abc import Callable

from qwen3_ray.errors import EngineError

DEFAULT_BUDGET_S = 60.0
STEP_FACTOR = 10.0
"""A step may take this many times the longest recent one on top of the budget."""
DECAY = 0.99
"""What one step leaves of the longest step before it: a slow one counts for some hundred steps."""


class Progress:
    """Watches steps end. A replica with work whose step does not end in time is not healthy.

    Knows nothing of an idle engine: nothing is due there.
    """

    def __init__(
        self,
        budget_s: float = DEFAULT_BUDGET_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._since: float | None = None
        self._longest_step_s = 0.0
        self._failure = ""

    def watch(self, *, has_work: bool) -> None:
        """Tell whether there is work now; time counts from when it came."""
        if not has_work:
            self._since = None
        elif self._since is None:
            self._since = self._clock()

    def step_ended(self) -> None:
        """A step has ended."""
        if self._since is not None:
            now = self._clock()
            self._longest_step_s = max(now - self._since, DECAY * self._longest_step_s)
            self._since = now

    def fail(self, problem: str) -> None:
        """The engine is gone for good."""
        self._failure = problem

    @property
    def step_age_s(self) -> float:
        """Seconds since the last step ended or work came; 0 without work."""
        return 0.0 if self._since is None else self._clock() - self._since

    def require(self) -> None:
        """Return if all is well.

        Raises:
            EngineError: the engine is gone, or its step is older than its budget.
        """
        if self._failure:
            raise EngineError(self._failure)
        budget_s = self._budget_s + STEP_FACTOR * self._longest_step_s
        if self.step_age_s > budget_s:
            raise EngineError(
                f"no engine step has ended for {self.step_age_s:.1f} s although there is work; "
                f"one may take {budget_s:.1f} s"
            )
