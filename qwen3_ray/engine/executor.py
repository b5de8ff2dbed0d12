"""The seam between planning steps and computing them."""

from __future__ import annotations

from typing import Protocol

from qwen3_ray.core.step import Sampled, Step


class Executor(Protocol):
    """Computes steps, in one thread. `qwen3_ray.testing.FakeExecutor` is one without a model."""

    @property
    def num_blocks(self) -> int:
        """KV blocks there are."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    def execute(self, step: Step) -> list[Sampled]:
        """Compute a step that is not empty.

        Returns:
            One for each request of the step, in its order. Each row is sampled as if the drafts
            before it were a part of the output; a request gets the drafts that are equal to what
            is sampled in their place, and one token after them.

        Raises:
            EngineError: the step failed; no further one can be computed.
        """

    def idle(self) -> None:
        """Show that all is well; called at least each second while there is no step.

        Raises:
            EngineError: a rank is gone.
        """

    def close(self) -> None:
        """Let all ranks end. Never raises."""
