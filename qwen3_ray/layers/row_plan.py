"""Row counts at which a row's bits do not depend on how many rows are computed with it.

Matrix products tile their rows: a row in a tile of another height may be summed in another order.
Which row counts are safe depends on the kernel and the CPU, so they are found by trying.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.linear import Matrix

_FINE_COUNTS = (*range(1, 17), 18, 20, 21, 24, 28, 30, 32, 36, 40, 42, 48)
_COARSE_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 18, 24, 30, 36, 48)
_GRANULES = (1, 2, 4, 6, 8, 12, 24, 48)
_EXHAUSTIVE_ROWS = 132  # more than the 120 rows after which FBGEMM begins again
_LARGE_COUNTS = (250, 500)
_REFERENCE_ROWS = 96
_NUM_DISTINCT_ROWS = 5  # prime to every tile height: each row content meets each place in a tile
_MAX_OPERATIONS = 60e9  # of one kind of test: half a second to a second of two cores


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The safe row counts of this machine's kernels; the runner pads each step to the next one."""

    safe_counts: tuple[int, ...] = ()
    """Tested safe counts, ascending."""
    granule: int = 1
    """Beyond the tested counts each multiple of this is safe."""
    exact: bool = False
    """Whether padding makes rows independent of the batch; else nothing is padded."""

    def pad(self, num_rows: int) -> int:
        """The smallest known safe count that is at least `num_rows`; 0 stays 0."""
        if num_rows == 0:
            return 0
        index = bisect_left(self.safe_counts, num_rows)
        if index < len(self.safe_counts):
            return self.safe_counts[index]
        return -(-num_rows // self.granule) * self.granule


class StepRows(NamedTuple):
    """What a layer that computes some rows of a step apart needs to know of them."""

    num_tokens: int
    """Rows from here on are padding."""
    plan: RowPlan
    """To pad the rows that are computed apart."""


def find_row_plan(matrices: Iterable[Matrix], tp: TPGroup, max_rows: int) -> RowPlan:
    """Try row counts on one matrix of each kernel and shape; all ranks agree on the result.

    A collective, for float32 activations on the CPU. Run it in the thread, and with the thread
    counts, that will run the steps. `max_rows` is the longest step. The work is bounded: large
    matrices see fewer counts, very large counts go untried.
    """
    kinds = {(m.out_features * m.in_features, m.out_features, m.name): m for m in matrices}
    probes = [_Probe(kinds[kind]) for kind in sorted(kinds)]
    affordable = _affordable_rows(probes, tp)
    counts = _FINE_COUNTS if sum(_FINE_COUNTS) <= affordable else _COARSE_COUNTS
    safe = _agreed(probes, tp, counts)
    cheapest = list({probe.kernel: probe for probe in reversed(probes)}.values())
    for granule in _GRANULES:
        if any(count % granule == 0 and count not in safe for count in counts):
            continue
        multiples = range(granule, _EXHAUSTIVE_ROWS + 1, granule)
        large = [_round_up(count, granule) for count in (*_LARGE_COUNTS, max_rows)]
        large = [count for count in large if count <= affordable]
        if len(_agreed(cheapest, tp, multiples)) == len(multiples) and len(
            _agreed(probes, tp, large)
        ) == len(set(large)):
            return RowPlan(safe, granule, exact=True)
    return RowPlan()


class _Probe:
    """One matrix, a few input rows and what they give in a large batch."""

    def __init__(self, matrix: Matrix) -> None:
        generator = torch.Generator().manual_seed(0)
        self.kernel = matrix.name
        self.num_operations = 2 * matrix.in_features * matrix.out_features
        """Of one row."""
        self._matrix = matrix
        self._rows = torch.randn(_NUM_DISTINCT_ROWS, matrix.in_features, generator=generator)
        self._expected = matrix.matmul(self._batch(_REFERENCE_ROWS))[:_NUM_DISTINCT_ROWS].clone()

    def is_safe(self, count: int) -> bool:
        """Whether every row of a batch of `count` has the bits of the large batch."""
        result = self._matrix.matmul(self._batch(count))
        return torch.equal(result, self._expected[self._contents(count)])

    def _batch(self, count: int) -> torch.Tensor:
        return self._rows[self._contents(count)]

    def _contents(self, count: int) -> torch.Tensor:
        return torch.arange(count) % _NUM_DISTINCT_ROWS


def _agreed(probes: Sequence[_Probe], tp: TPGroup, counts: Sequence[int]) -> tuple[int, ...]:
    """Those of `counts` that are safe for every probe of every rank."""
    if not counts:
        return ()
    mask = [int(all(probe.is_safe(count) for probe in probes)) for count in counts]
    agreed = tp.all_agree(torch.tensor(mask, dtype=torch.int32)).tolist()
    return tuple(sorted({count for count, safe in zip(counts, agreed, strict=True) if safe}))


def _affordable_rows(probes: Sequence[_Probe], tp: TPGroup) -> int:
    """Rows, over all counts of one kind of test, that every rank has the time to try.

    Ranks may have different probes: a shard that fp16 does not hold is a matrix of another kind.
    """
    rows = _MAX_OPERATIONS / sum(probe.num_operations for probe in probes)
    return int(tp.all_agree(torch.tensor([int(rows)])))


def _round_up(count: int, granule: int) -> int:
    return -(-count // granule) * granule
