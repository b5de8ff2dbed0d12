"""What it costs ranks of one machine to speak: memory against gloo, in one run.

    python -m benchmarks.all_reduce
    python -m benchmarks.all_reduce --ranks 4 --hidden 1024 --rows 1 16 512

Prints the median time of an all-reduce on rank 0, ranks in processes of their own with a thread
each. Then that of handing a step of 16 decodes over, beyond that of the collective that follows;
and what it would be in two messages of the lengths needed, and in one that is padded, without
the time to write and read the frame.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import numpy as np
import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.collectives import Collectives
from qwen3_ray.distributed.control import FRAME_SIZE, HEADER_SIZE, Kind, StepArrays, StepControl
from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.distributed.shared_collectives import SharedCollectives

TIMEOUT_S = 60.0
NUM_WARM_UPS = 20
NUM_ROUNDS = 5
NUM_SEQS, MAX_BLOCKS = 16, 64
CPU = torch.device("cpu")


def median_us(call: Callable[[], object], num_calls: int) -> list[float]:
    """Microseconds of each call, after some that do not count."""
    times = []
    for _ in range(NUM_WARM_UPS):
        call()
    for _ in range(num_calls):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def by_turns(calls: dict[str, Callable[[], object]], num_calls: int) -> dict[str, float]:
    """Median microseconds by name; rounds of all take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(NUM_ROUNDS):
        for name, call in calls.items():
            times[name] += median_us(call, num_calls)
    return {name: statistics.median(values) for name, values in times.items()}


def step_arrays() -> StepArrays:
    """A decode of `NUM_SEQS` requests of some 2,000 tokens."""
    row = np.zeros(NUM_SEQS, np.int32)
    return StepArrays(
        input_ids=row,
        positions=row,
        slot_mapping=row,
        query_start_loc=np.zeros(NUM_SEQS + 1, np.int32),
        seq_lens=row,
        block_tables=np.zeros((NUM_SEQS, MAX_BLOCKS), np.int32),
        logits_indices=row,
    )


def hand_over(collectives: Collectives, rank: int, size: int) -> Callable[[], object]:
    """A frame from rank 0 to the others, and their answer."""
    control = StepControl(collectives, rank, size)
    arrays = step_arrays()
    answer = torch.zeros(1)

    def call() -> None:
        if rank == 0:
            control.send(Kind.STEP, arrays)
        else:
            control.receive()
        collectives.all_reduce(answer)

    return call


def summing(collectives: Collectives, x: torch.Tensor) -> Callable[[], object]:
    """One all-reduce."""
    return lambda: collectives.all_reduce(x)


def messages(collectives: Collectives, *num_words: int) -> Callable[[], object]:
    """Nothing but messages from rank 0 to the others, and their answer."""
    frames = [torch.zeros(size, dtype=torch.int32) for size in num_words]
    answer = torch.zeros(1)

    def call() -> None:
        for frame in frames:
            collectives.broadcast(frame)
        collectives.all_reduce(answer)

    return call


def run_rank(rank: int, size: int, directory: Path, hidden: int, rows: list[int]) -> None:
    """What every rank does; rank 0 prints."""
    torch.set_num_threads(1)
    store = c10d.FileStore(str(directory / "store"), size)
    gloo = ProcessGroupCollectives.connect(
        c10d.PrefixStore("gloo", store), rank, size, device=CPU, timeout_s=TIMEOUT_S
    )
    memory = SharedCollectives.connect(
        c10d.PrefixStore("memory", store), rank, size, timeout_s=TIMEOUT_S
    )
    ways: dict[str, Collectives] = {"gloo": gloo, "memory": memory}
    report = print if rank == 0 else lambda *_: None
    report(f"{size} ranks, rows of {hidden} float32: microseconds an all-reduce")
    report(f"{'rows':>6} {'gloo':>9} {'memory':>9} {'ratio':>6}")
    for num_rows in rows:
        x = torch.zeros(num_rows, hidden)
        times = by_turns(
            {name: summing(way, x) for name, way in ways.items()},
            num_calls=max(20, 4_000 // (20 + num_rows)),
        )
        ratio = times["gloo"] / times["memory"]
        report(f"{num_rows:6} {times['gloo']:9.0f} {times['memory']:9.0f} {ratio:6.1f}")
    report("a step of 16 decodes handed over: microseconds beyond the collective that follows")
    report(f"{'':>6} {'whole':>9} {'two messages':>13} {'one padded':>11}")
    payload = sum(getattr(step_arrays(), name).size for name in StepArrays.__slots__)
    for name, way in ways.items():
        times = by_turns(
            {
                "nothing": messages(way),
                "whole": hand_over(way, rank, size),
                "two": messages(way, HEADER_SIZE, payload),
                "one": messages(way, FRAME_SIZE),
            },
            num_calls=200,
        )
        whole, two, one = (times[kind] - times["nothing"] for kind in ("whole", "two", "one"))
        report(f"{name:>6} {whole:9.0f} {two:13.0f} {one:11.0f}")


def main() -> None:
    """Start the other ranks and be rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64, 512, 2048])
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank > 0:
        run_rank(args.rank, args.ranks, args.directory, args.hidden, args.rows)
        return
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "benchmarks.all_reduce", *sys.argv[1:]]
        # As in an engine: no listening socket beyond this machine.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        others = [
            subprocess.Popen([*command, "--rank", str(rank), "--directory", directory])
            for rank in range(1, args.ranks)
        ]
        run_rank(0, args.ranks, Path(directory), args.hidden, args.rows)
        for other in others:
            other.wait()


if __name__ == "__main__":
    main()
