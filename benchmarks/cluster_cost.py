"""What each process of a served model takes of the processors, idle and with streaming clients.

    python -m benchmarks.cluster_cost                          # the bundled model
    python -m benchmarks.cluster_cost --model DIR --clients 16

Starts `qwen3-ray serve` with one rank, as `benchmarks.bench` does, and reads the processor time of
all processes below it. Prints percentages of one core; clients take part of the machine as well,
and are not shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.peers.lineup import OURS, Lineup
from benchmarks.peers.processes import tree
from benchmarks.peers.work import Case, PromptSource, Work
from qwen3_ray.config import DEMO_MODEL_DIR

LEAST_PERCENT = 0.1
SETTLE_S = 3.0

Times = dict[int, tuple[str, float]]
"""By process id: what it is, and the seconds it has had."""


def read_times(pid: int) -> Times:
    """Of all processes of a tree."""
    times: Times = {}
    for process in tree(pid):
        try:
            spent = process.cpu_times()
            times[process.pid] = describe(process.cmdline()), spent.user + spent.system
        except psutil.NoSuchProcess:
            continue
    return times


def describe(command_line: list[str]) -> str:
    """Ray's title of a process, or the name of its program or script."""
    title = command_line[0] if command_line else "?"
    if title.startswith("ray::"):
        return title
    scripts = [argument for argument in command_line if argument.endswith(".py")]
    return Path(scripts[0] if scripts else title).name


def percentages(before: Times, after: Times, seconds: float) -> dict[str, float]:
    """Of a core, in between; processes of one name together."""
    shares: dict[str, float] = {}
    for pid, (name, spent) in after.items():
        _, earlier = before.get(pid, (name, 0.0))
        shares[name] = shares.get(name, 0.0) + 100 * (spent - earlier) / seconds
    return shares


def print_table(idle: Mapping[str, float], busy: Mapping[str, float]) -> None:
    """The busiest first, then the sum of all but the ranks."""
    print(f"{'percent of a core':44}{'idle':>8}{'busy':>8}")
    for name in sorted(busy, key=lambda name: -busy[name]):
        if max(busy[name], idle.get(name, 0.0)) >= LEAST_PERCENT:
            print(f"{name:44}{idle.get(name, 0.0):8.1f}{busy[name]:8.1f}")
    rest = [sum(v for name, v in part.items() if "RankWorker" not in name) for part in (idle, busy)]
    print(f"{'all but the ranks':44}{rest[0]:8.1f}{rest[1]:8.1f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL_DIR, help="checkpoint directory")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long to look at it idle")
    options = parser.parse_args()
    work = Work(last_token_id=1_500) if options.model == DEMO_MODEL_DIR else Work()
    server = Lineup(work, options.model.resolve()).server(OURS)
    server.start()
    try:
        if server.pid is None:
            raise RuntimeError("the server is gone")
        time.sleep(SETTLE_S)
        start, before = time.perf_counter(), read_times(server.pid)
        time.sleep(options.seconds)
        between, middle = time.perf_counter(), read_times(server.pid)
        values = server.measure(
            Case("http", options.clients), PromptSource(work, seed="cluster_cost")
        )
        end, after = time.perf_counter(), read_times(server.pid)
    finally:
        server.close()
    idle, busy = (
        percentages(before, middle, between - start),
        percentages(middle, after, end - between),
    )
    print_table(idle, busy)
    print(f"{options.clients} clients, {values['tokens_per_s']:.1f} output tokens/s")


if __name__ == "__main__":
    main()
