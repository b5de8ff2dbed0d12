"""What it costs to share a kernel between threads: Numba's parallel layer against our pool.

    python -m benchmarks.kernel_threads

Prints microseconds a call of an empty kernel on two threads, and seconds to compile each way.
Behind docs/adr/0001.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

import numba
import numpy as np

from qwen3_ray.cpu.thread_pool import ThreadPool

NUM_THREADS = 2
NUM_CALLS = 2_000
NUM_ROUNDS = 5
ENOUGH_OPERATIONS = 1_000_000
"""Makes the pool use every thread."""


def row_sums(part: int, num_parts: int, x: np.ndarray, out: np.ndarray) -> None:
    """Every `num_parts`-th row's sum."""
    for row in range(part, x.shape[0], num_parts):
        out[row] = x[row].sum()


def parallel_row_sums(x: np.ndarray, out: np.ndarray) -> None:
    """The same, by Numba's own loop over threads."""
    for row in numba.prange(x.shape[0]):
        out[row] = x[row].sum()


def compile_s(call: Callable[[], None]) -> float:
    """Seconds of the first call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def call_us(call: Callable[[], None]) -> float:
    """Median over rounds of microseconds a call."""
    rounds = []
    for _ in range(NUM_ROUNDS):
        start = time.perf_counter()
        for _ in range(NUM_CALLS):
            call()
        rounds.append((time.perf_counter() - start) / NUM_CALLS * 1e6)
    return statistics.median(rounds)


def main() -> None:
    """Compile and time both ways on a small array, so that the hand-over is what is seen."""
    numba.set_num_threads(NUM_THREADS)
    x, out = np.ones((NUM_THREADS, 8), np.float32), np.zeros(NUM_THREADS, np.float32)
    pool = ThreadPool(NUM_THREADS)
    single = numba.njit(nogil=True)(row_sums)
    parallel = numba.njit(parallel=True)(parallel_row_sums)

    def by_pool() -> None:
        pool.run(single, ENOUGH_OPERATIONS, x, out)

    def in_one_thread() -> None:
        pool.run(single, 0, x, out)

    def by_numba() -> None:
        parallel(x, out)

    print("way                      compile s   us a call")
    for name, call in (
        ("our pool, 2 threads", by_pool),
        ("our pool, work too small", in_one_thread),
        ("numba workqueue", by_numba),
    ):
        print(f"{name:24} {compile_s(call):9.2f} {call_us(call):11.1f}")


if __name__ == "__main__":
    main()
