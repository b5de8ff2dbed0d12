"""Threads that share one kernel call: for Numba kernels that release the GIL.

Each kernel is compiled once and serves a part of the work in every thread, so its bits cannot
depend on the number of threads. Numba's own parallel layers are not used: they take 30 to 60 us
a call, as long as a whole small step, abort the process when two threads enter them at once, and
multiply the time to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_MIN_OPERATIONS = 100_000  # about as long as it takes to wake a thread


class ThreadPool:
    """The calling thread and `num_threads - 1` sleeping helpers. Any thread may call it."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._executor = ThreadPoolExecutor(max(1, num_threads - 1), "kernels")

    def run(self, kernel: Callable[..., None], num_operations: int, *args: object) -> None:
        """Call `kernel(part, num_parts, *args)` for each part; return when all are done.

        `num_operations` (roughly, of a scalar kind) decides how many parts are worth a thread.
        """
        num_parts = min(self.num_threads, 1 + num_operations // _MIN_OPERATIONS)
        helpers = [
            self._executor.submit(kernel, part, num_parts, *args) for part in range(1, num_parts)
        ]
        kernel(0, num_parts, *args)
        for helper in helpers:
            helper.result()
