"""Ours beside every peer that is installed, on the same work, in turns.

    make bench                                        all of it
    make bench ARGS="--only offline --rounds 3"       a part
    make bench-peers                                  installs the peers, once

Each round asks each contender for everything once, so that the machine's moods meet all alike;
figures are medians over the rounds. Engines stay up between their turns and are watched for what
they use meanwhile; servers, which are never quite idle, are started for each turn. What the work is
stands in `benchmarks/peers/work.py`. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import comparison_chart, comparison_table, limits, machine
from benchmarks.comparison import Comparison, Entry
from benchmarks.peers.contender import Contender, ContenderError
from benchmarks.peers.lineup import OURS, PEERS, SERVERS, WEIGHTS, Lineup, is_installed
from benchmarks.peers.model import ensure_model
from benchmarks.peers.processes import Meter, cpu_seconds
from benchmarks.peers.work import Case, PromptSource, Sample, Work, http_cases, offline_cases

RESULTS_DIR = Path("benchmarks/results")
PHASES = ("offline", "http")
SLOW_WEIGHTS = "fp32"
"""Who reads four bytes a weight is slow and far behind: fewer rounds tell as much."""


@dataclass(slots=True)
class Participant:
    """A contender in one phase, and how it fares."""

    contender: Contender
    phase: str
    num_rounds: int
    stays: bool = True
    """Up from the first round to its last; else started for each turn."""
    problem: str | None = None
    _cpu_at_rest: float = 0.0
    _rest_began: float = 0.0

    def entry(self) -> Entry:
        """For the document."""
        name = self.contender.name
        return Entry(name, self.phase, WEIGHTS[name], self.contender.facts, self.problem)

    def attempt(self, work: Callable[[], None]) -> None:
        """Run some of its work; it is out for the rest of the phase when that fails."""
        try:
            work()
        except (ContenderError, OSError, LookupError, ValueError) as error:
            self.problem = str(error)
            print(f"  {self.contender.name} is out: {error}", flush=True)
            self.contender.close()

    def start(self) -> None:
        """Until it can work."""
        print(f"{self.phase}: starting {self.contender.name}", flush=True)
        self.attempt(self.contender.start)

    def rest(self) -> None:
        """Its turn has ended."""
        pid = self.contender.pid
        if pid is None:
            return
        self.contender.facts.memory.look(pid)
        if self.stays:
            self._cpu_at_rest, self._rest_began = cpu_seconds(pid), time.perf_counter()
        else:
            self.contender.close()

    def wake(self) -> None:
        """Its turn begins: note what it used while it should have used nothing."""
        if not self.stays:
            self.start()
        elif self.contender.pid is not None:
            used = cpu_seconds(self.contender.pid) - self._cpu_at_rest
            facts = self.contender.facts
            cores = used / (time.perf_counter() - self._rest_began)
            facts.idle_cores = max(facts.idle_cores or 0.0, cores)


@dataclass(slots=True)
class Run:
    """Measures phases, keeps what they gave."""

    work: Work
    measure_ceilings: Callable[[], dict[str, float]]
    samples: list[Sample] = field(default_factory=list)
    ceilings: list[dict[str, float]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def phase(self, participants: Sequence[Participant], cases: Sequence[Case]) -> None:
        """Start those who stay, measure all in rounds, end all."""
        try:
            for participant in participants:
                if participant.stays:
                    participant.start()
                    participant.rest()
            for number in range(max((p.num_rounds for p in participants), default=0)):
                self.ceilings.append(self.measure_ceilings())
                for participant in participants:
                    self._turn(participant, cases, number)
        finally:
            for participant in participants:
                participant.contender.close()
                self.entries.append(participant.entry())

    def _turn(self, participant: Participant, cases: Sequence[Case], number: int) -> None:
        if participant.problem is None and number < participant.num_rounds:
            participant.wake()
            for case in cases:
                if participant.problem is None:
                    participant.attempt(lambda case=case: self._measure(participant, case, number))
            participant.rest()
        if number + 1 >= participant.num_rounds:
            participant.contender.close()

    def _measure(self, participant: Participant, case: Case, number: int) -> None:
        name = participant.contender.name
        prompts = PromptSource(self.work, seed=f"{number} {case.name}")
        with Meter() as meter:
            values = participant.contender.measure(case, prompts)
        sample = Sample(name, case.name, number, values, meter.foreign_cores)
        self.samples.append(sample)
        print(f"  round {number + 1}  {case.name:<10}  {name:<12}  "
              f"{values['tokens_per_s']:8.1f} tokens/s", flush=True)  # fmt: skip


def compare(
    lineup: Lineup, peers: Iterable[str], *, phases: Sequence[str], rounds: int, slow_rounds: int
) -> Comparison:
    """Measure ours and `peers`; those that are not installed are named in the result."""
    run = Run(lineup.work, _ceilings)
    names = [OURS, *peers]
    for phase in phases:
        make, cases = lineup.offline, offline_cases(lineup.work)
        if phase == "http":
            make, cases = lineup.server, http_cases(lineup.work)
        participants = []
        for name in names:
            if phase == "http" and name not in SERVERS:
                continue
            num_rounds = min(rounds, slow_rounds) if WEIGHTS[name] == SLOW_WEIGHTS else rounds
            stays = phase == "offline" and num_rounds > 1
            participant = Participant(make(name), phase, num_rounds, stays=stays)
            if is_installed(name):
                participants.append(participant)
            else:
                participant.problem = f"not installed: make bench-peers ARGS={name}"
                run.entries.append(participant.entry())
        run.phase(participants, cases)
    return _comparison(run, lineup)


def _comparison(run: Run, lineup: Lineup) -> Comparison:
    best = limits.Machine(
        read_bytes_per_s=max(c["read_bytes_per_s"] for c in run.ceilings),
        flops=max(max(c["multiply_adds_flops"], c["gemm_flops"]) for c in run.ceilings),
    )
    cost = limits.ModelCost.of(lineup.model_dir)
    cases = (*offline_cases(run.work), *http_cases(run.work))
    return Comparison(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=machine.commit(),
        machine=machine.describe(),
        work=run.work,
        ours=OURS,
        ceilings=run.ceilings,
        limits={case.name: limits.limit(case, run.work, cost, best) for case in cases},
        entries=run.entries,
        samples=run.samples,
    )


def _ceilings() -> dict[str, float]:
    """In a process of its own: threads and memory end with it."""
    command = [sys.executable, "-m", "benchmarks.ceilings"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def store(comparison: Comparison, directory: Path) -> Path:
    """Write the JSON file, the table and the chart, named after date, commit and machine."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{comparison.date}-{comparison.commit}-{machine.slug(comparison.machine)}"
    path = directory / f"{name}.json"
    path.write_text(json.dumps(comparison.document(), indent=1) + "\n")
    path.with_suffix(".txt").write_text(comparison_table.render(comparison) + "\n")
    path.with_suffix(".svg").write_text(comparison_chart.render(comparison))
    return path


def _peer_names(text: str) -> list[str]:
    names = [] if text in {"", "none"} else text.split(",")
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(sorted(unknown))}")
    return names


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--peers", type=_peer_names, default=list(PEERS),
        help=f"some of {','.join(PEERS)}, or none (default: all)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--slow-rounds", type=int, default=1, help="for peers that hold weights as fp32"
    )
    parser.add_argument("--only", choices=PHASES)
    parser.add_argument("--requests-per-client", type=int, default=1, help="in a round of http")
    parser.add_argument("--model", type=Path, help="directory, ours only (default: made)")
    parser.add_argument("--results", type=Path, default=RESULTS_DIR)
    options = parser.parse_args()
    start = time.perf_counter()
    work = Work(requests_per_client=options.requests_per_client)
    comparison = compare(
        Lineup(work, options.model or ensure_model()),
        options.peers,
        phases=[options.only] if options.only else PHASES,
        rounds=options.rounds,
        slow_rounds=options.slow_rounds,
    )
    path = store(comparison, options.results)
    print(f"\n{comparison_table.render(comparison)}\n")
    print(f"took {(time.perf_counter() - start) / 60:.0f} minutes; stored as {path}")


if __name__ == "__main__":
    main()
