"""The seam between planning steps and computing them."""

from __future__ import annotations

from typing import Protocol

from qwen3_ray.core.scheduler import Step


class Executor(Protocol):
    """Computes steps, in one thread. `qwen3_ray.testing.FakeExecutor` is one without a model."""

    @property
    def num_blocks(self) -> int:
        """KV blocks there are."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    def execute(self, step: Step) -> list[int]:
        """Compute a step that is not empty.

        Returns:
            One id for each request that samples, in the step's order;
            `sampling_rows.NUMERICAL_ERROR` for one whose logits were not all finite.

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
