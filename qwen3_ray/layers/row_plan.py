"""Row counts at which a row's bits do not depend on how many rows are computed with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The safe row counts of this machine's kernels; the runner pads each step to the next one."""

    safe_counts: tuple[int, ...] = ()
    """Tested safe counts, ascending."""
    granule: int = 1
    """Beyond the tested counts each multiple of this is safe."""
    exact: bool = False
    """Whether padding makes rows independent of the batch."""

    def pad(self, num_rows: int) -> int:
        """The smallest known safe count that is at least `num_rows`; 0 stays 0."""
        raise NotImplementedError
