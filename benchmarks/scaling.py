"""How a decode step's time grows with context length and batch, beside the machine's limits.

    python -m benchmarks.scaling

Every pair whose keys and values fit in `--kv-bytes` is measured. Nothing is prefilled: the model
runner is given steps of sequences whose blocks are there already, filled with random values and
scattered over the cache. A step is the forward pass and the head, without sampling. The limits
count what the engine has to read: weights of two bytes, keys and values in the cache's own type.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks import machine, scaling_chart
from benchmarks.check_4b import checkpoint
from benchmarks.comparison_table import aligned
from benchmarks.limits import Machine, ModelCost
from benchmarks.make_checkpoint import SHAPES
from benchmarks.peers.processes import Meter
from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.control import StepArrays
from qwen3_ray.engine.rendezvous import Rendezvous
from qwen3_ray.engine.startup import Rank, start_rank
from qwen3_ray.runner.memory import KVLayout
from qwen3_ray.runner.model_runner import ModelRunner

RESULTS_DIR = Path("benchmarks/results")
CONTEXT_LENS = tuple(512 << exponent for exponent in range(7))
BATCHES = tuple(1 << exponent for exponent in range(7))
GOAL = 1.4
"""Times the larger limit that a step may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One pair of batch and context length."""

    num_seqs: int
    context_len: int
    step_s: Sequence[float]
    bytes_s: float
    """What is read, over the machine's bandwidth."""
    operations_s: float
    """What is computed, over the machine's rate."""

    @property
    def median_s(self) -> float:
        """Of the measured steps."""
        return statistics.median(self.step_s)

    @property
    def limit_s(self) -> float:
        """Reading and computing may overlap."""
        return max(self.bytes_s, self.operations_s)

    @property
    def ratio(self) -> float:
        """Measured to limit."""
        return self.median_s / self.limit_s

    @property
    def ratio_to_sum(self) -> float:
        """Measured to both limits, one after the other: see docs/adr/0008."""
        return self.median_s / (self.bytes_s + self.operations_s)


def pairs(
    layout: KVLayout, kv_bytes: int, batches: Sequence[int], context_lens: Sequence[int]
) -> list[tuple[int, int]]:
    """(batch, context length) of every pair whose blocks fit in `kv_bytes`."""
    return [
        (num_seqs, length)
        for num_seqs in batches
        for length in context_lens
        if num_seqs * layout.num_blocks_for(length) * layout.bytes_per_block <= kv_bytes
    ]


def decode_step(
    block_ids: Sequence[int], *, num_seqs: int, context_len: int, block_size: int
) -> StepArrays:
    """Arrays of a step in which `num_seqs` sequences compute position `context_len - 1`."""
    num_blocks = -(-context_len // block_size)
    tables = np.array(block_ids[: num_seqs * num_blocks], np.int32).reshape(num_seqs, num_blocks)
    position = context_len - 1
    rows = np.arange(num_seqs, dtype=np.int32)
    return StepArrays(
        input_ids=rows + 1,
        positions=np.full(num_seqs, position, np.int32),
        slot_mapping=tables[:, position // block_size] * block_size + position % block_size,
        query_start_loc=np.arange(num_seqs + 1, dtype=np.int32),
        seq_lens=np.full(num_seqs, context_len, np.int32),
        block_tables=tables,
        logits_indices=rows,
    )


def start(model_dir: Path, kv_bytes: int) -> Rank:
    """One rank with all cores, whose KV blocks have been written: they hold random values.

    Pages of zeros that nobody wrote would all be one page, and quick to read.
    """
    config = EngineConfig(
        model_dir=model_dir, device="cpu", skip_tokenizer_init=True, kv_cache_memory=kv_bytes
    )
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = Rendezvous(rank=0, size=1, directory=Path(directory))
        rank = start_rank(config, rendezvous, lambda _progress: None)
    for cache in rank.runner._kv_caches:
        for values in cache:
            values.uniform_(-1.0, 1.0)
    return rank


def run(
    rank: Rank,
    cost: ModelCost,
    measure_rates: Callable[[], Machine],
    wanted: Sequence[tuple[int, int]],
    *,
    rounds: int,
) -> tuple[list[Point], Machine]:
    """Time one step of each pair in each round, after a round that is not counted.

    Rates are measured in each round too; the limits come of the best.
    """
    block_ids = np.random.default_rng(0).permutation(rank.num_blocks).tolist()
    block_size = rank.kv_layout.block_size
    steps = [
        decode_step(block_ids, num_seqs=num_seqs, context_len=length, block_size=block_size)
        for num_seqs, length in wanted
    ]
    times = [[_timed(rank.runner, arrays) for arrays in steps]]
    rates = []
    for _ in range(rounds):
        rates.append(measure_rates())
        times.append([_timed(rank.runner, arrays) for arrays in steps])
    best = Machine(
        read_bytes_per_s=max(rate.read_bytes_per_s for rate in rates),
        flops=max(rate.flops for rate in rates),
    )
    kv_bytes = rank.kv_layout.dtype.itemsize
    points = [
        Point(
            num_seqs=num_seqs,
            context_len=length,
            step_s=step_s,
            bytes_s=cost.decode_bytes(num_seqs, length, kv_bytes=kv_bytes) / best.read_bytes_per_s,
            operations_s=cost.decode_operations(num_seqs, length) / best.flops,
        )
        for (num_seqs, length), *step_s in zip(wanted, *times[1:], strict=True)
    ]
    return points, best


def _timed(runner: ModelRunner, arrays: StepArrays) -> float:
    began = time.perf_counter()
    runner.execute(arrays)
    return time.perf_counter() - began


def table(points: Sequence[Point]) -> list[str]:
    """One line for each pair."""
    head = ("batch", "context", "step ms", "bytes ms", "operations ms", "to limit", "to sum")
    rows = [
        (
            str(point.num_seqs),
            str(point.context_len),
            f"{1000 * point.median_s:.1f}",
            f"{1000 * point.bytes_s:.1f}",
            f"{1000 * point.operations_s:.1f}",
            f"{point.ratio:.2f}" + ("!" if point.ratio > GOAL else ""),
            f"{point.ratio_to_sum:.2f}",
        )
        for point in points
    ]
    return aligned([head, *rows])


def measured_rates() -> Machine:
    """Of this machine now, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ceilings"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    return Machine(
        read_bytes_per_s=found["read_bytes_per_s"],
        flops=max(found["multiply_adds_flops"], found["gemm_flops"]),
    )


def store(points: Sequence[Point], rates: Machine, shape: str, directory: Path) -> Path:
    """Write the JSON file, the table and the chart, named after date, commit and machine."""
    directory.mkdir(parents=True, exist_ok=True)
    here = machine.describe()
    date, commit = datetime.now(UTC).strftime("%Y-%m-%d"), machine.commit()
    path = directory / f"{date}-{commit}-{machine.slug(here)}-scaling.json"
    document = {
        "date": date,
        "commit": commit,
        "machine": here,
        "shape": shape,
        "rates": asdict(rates),
        "points": [asdict(point) for point in points],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".txt").write_text("\n".join(table(points)) + "\n")
    series = {
        num_seqs: [
            (point.context_len, point.median_s, point.limit_s)
            for point in points
            if point.num_seqs == num_seqs
        ]
        for num_seqs in sorted({point.num_seqs for point in points})
    }
    path.with_suffix(".svg").write_text(scaling_chart.render(series, f"{here['cpu']}, {commit}"))
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--kv-bytes", type=int, default=8_000_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS_DIR)
    options = parser.parse_args()
    model_dir = checkpoint(options.shape)
    rank = start(model_dir, options.kv_bytes)
    wanted = pairs(rank.kv_layout, options.kv_bytes, BATCHES, CONTEXT_LENS)
    with Meter() as meter:
        points, rates = run(
            rank, ModelCost.of(model_dir), measured_rates, wanted, rounds=options.rounds
        )
    print("\n".join(table(points)))
    worst = max(points, key=lambda point: point.ratio)
    print(f"worst: {worst.ratio:.2f} of the limit (goal: {GOAL})")
    print(f"others used {meter.foreign_cores:.2f} cores")
    print(f"stored as {store(points, rates, options.shape, options.results)}")


if __name__ == "__main__":
    main()
