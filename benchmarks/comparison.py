"""A comparison's document: what `make bench` stores, and what its table and chart are made of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.peers.contender import Facts
from benchmarks.peers.work import Case, Sample, Work, http_cases, offline_cases

VERSION = 1
SMALLER_IS_BETTER = frozenset({"ttft_s", "ttft_s_p99", "itl_s", "itl_s_p99"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender of one phase."""

    name: str
    phase: str
    """`offline` or `http`."""
    weights: str
    facts: Facts
    problem: str | None = None
    """Why it was left out, or fell out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that one run found out."""

    date: str
    commit: str
    machine: dict[str, object]
    work: Work
    ours: str
    ceilings: Sequence[dict[str, float]]
    """Of each round."""
    limits: dict[str, float]
    """Tokens a second of each case that the best ceilings allow."""
    entries: Sequence[Entry]
    samples: Sequence[Sample]

    def document(self) -> dict[str, object]:
        """For JSON; all raw samples are in it."""
        return {"version": VERSION, **asdict(self)}

    def cases(self) -> list[Case]:
        """Those that were measured, in order."""
        measured = {sample.case for sample in self.samples}
        return [
            case
            for case in (*offline_cases(self.work), *http_cases(self.work))
            if case.name in measured
        ]

    def contenders(self, case: Case) -> list[str]:
        """Those who have samples of a case, ours first."""
        names = {sample.contender for sample in self.samples if sample.case == case.name}
        return sorted(names, key=lambda name: (name != self.ours, name))

    def median(self, contender: str, case: Case, value: str) -> float | None:
        """Over the rounds; None if it was not measured."""
        values = [sample.values[value] for sample in self._of(contender, case, value)]
        return statistics.median(values) if values else None

    def num_rounds(self, contender: str, case: Case) -> int:
        """Of which `median` is the median."""
        return len(self._of(contender, case, "tokens_per_s"))

    def foreign_cores(self, contender: str, case: Case) -> float:
        """The most that others used in one of its rounds."""
        return max(s.foreign_cores for s in self._of(contender, case, "tokens_per_s"))

    def best_peer(self, case: Case, value: str) -> tuple[str, float] | None:
        """The peer with the best median of a value, of all that were measured."""
        medians = {
            name: median
            for name in self.contenders(case)
            if name != self.ours and (median := self.median(name, case, value)) is not None
        }
        if not medians:
            return None
        choose = min if value in SMALLER_IS_BETTER else max
        best = choose(medians, key=medians.__getitem__)
        return best, medians[best]

    def ratio(self, contender: str, case: Case, value: str) -> float | None:
        """Of its median to the best peer's."""
        best, own = self.best_peer(case, value), self.median(contender, case, value)
        return None if best is None or own is None else own / best[1]

    def _of(self, contender: str, case: Case, value: str) -> list[Sample]:
        return [
            sample
            for sample in self.samples
            if sample.contender == contender and sample.case == case.name and value in sample.values
        ]
