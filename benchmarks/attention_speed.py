"""Attention of running requests on CPU: keys and values read in a second, beside a plain loop.

    python -m benchmarks.attention_speed
    python -m benchmarks.attention_speed --cases 16x512 1x32768 --heads 32 8

Each case is sequences x context length, one row each, blocks scattered over a cache that is read
whole, larger than the processor's. Beside it, on the same threads and in turns: the time in which
a plain loop adds up as many bytes from end to end, over that of attention; and the rate where all
blocks of all sequences are one, which stays in the processor's cache: what arithmetic allows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import numba
import numpy as np
import torch

from qwen3_ray.attention.base import AttentionMetadata, allocate_kv_caches
from qwen3_ray.attention.numba_paged import NumbaPagedAttention
from qwen3_ray.cpu.thread_pool import ThreadPool

CASES = ("1x32768", "2x16384", "8x1024", "16x512", "64x512")
DTYPES = (torch.float32, torch.float16)
HEAD_DIM, BLOCK_SIZE = 128, 32
_ON_ALL_THREADS = 1 << 60


@numba.njit(nogil=True, fastmath=True)
def _add_up(part: int, num_parts: int, values: np.ndarray, sums: np.ndarray) -> None:
    total = np.float32(0)
    for index in range(values.size * part // num_parts, values.size * (part + 1) // num_parts):
        total += values[index]
    sums[part] = total


class Decodes(NamedTuple):
    """One step's attention of one layer."""

    attend: Callable[[], object]
    attend_near: Callable[[], object]
    """The same work on one block, which is read again and again."""
    read: Callable[[], object]
    """Adds up what `attend` reads."""
    num_bytes: int


def make_decodes(
    num_seqs: int, context_len: int, dtype: torch.dtype, *, num_heads: int, num_kv_heads: int
) -> Decodes:
    """Of `num_seqs` requests whose context, a multiple of `BLOCK_SIZE`, holds random values."""
    num_blocks = context_len // BLOCK_SIZE
    (cache,) = allocate_kv_caches(
        num_layers=1,
        num_blocks=num_seqs * num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=num_kv_heads,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=torch.device("cpu"),
        panels=True,
    )
    for values in cache:
        values.uniform_(-1, 1)
    order = torch.randperm(num_seqs * num_blocks, generator=torch.Generator().manual_seed(0))
    tables = order.view(num_seqs, num_blocks).int()

    def metadata(tables: torch.Tensor) -> AttentionMetadata:
        return AttentionMetadata(
            query_start_loc=torch.arange(num_seqs + 1, dtype=torch.int32),
            seq_lens=torch.full((num_seqs,), context_len, dtype=torch.int32),
            block_tables=tables,
            slot_mapping=tables[:, -1] * BLOCK_SIZE + BLOCK_SIZE - 1,
            block_size=BLOCK_SIZE,
        )

    far, near = metadata(tables), metadata(torch.zeros_like(tables))
    pool = ThreadPool(torch.get_num_threads())
    backend = NumbaPagedAttention(pool)
    q = torch.randn(num_seqs, num_heads, HEAD_DIM)
    words = [values.view(torch.float32).view(-1).numpy() for values in cache]
    sums = np.zeros(pool.num_threads, np.float32)
    return Decodes(
        attend=lambda: backend.attend(q, cache, far),
        attend_near=lambda: backend.attend(q, cache, near),
        read=lambda: [pool.run(_add_up, _ON_ALL_THREADS, values, sums) for values in words],
        num_bytes=sum(values.nbytes for values in cache),
    )


def medians(calls: Sequence[Callable[[], object]], num_rounds: int) -> list[float]:
    """Seconds of each, taken in turns, after a round that is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(num_rounds + 1):
        for call, times in zip(calls, seconds, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [statistics.median(times[1:]) for times in seconds]


def main() -> None:
    """Print a row for each case and dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", nargs="+", default=CASES, help="sequences x context length")
    parser.add_argument("--heads", nargs=2, type=int, default=(16, 8), help="query, key/value")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    num_heads, num_kv_heads = options.heads
    print(f"{'dtype':8} {'case':>10} {'ms':>8} {'GB/s':>6} {'plain loop':>11} {'from cache':>11}")
    for dtype in DTYPES:
        for case in options.cases:
            decodes = make_decodes(
                *map(int, case.split("x")), dtype, num_heads=num_heads, num_kv_heads=num_kv_heads
            )
            calls = (decodes.attend, decodes.attend_near, decodes.read)
            own, near, plain = medians(calls, options.rounds)
            name = str(dtype).removeprefix("torch.")
            rate, near_rate = (decodes.num_bytes / seconds / 1e9 for seconds in (own, near))
            print(
                f"{name:8} {case:>10} {1e3 * own:8.2f} {rate:6.1f} {plain / own:11.2f} "
                f"{near_rate:11.1f}"
            )


if __name__ == "__main__":
    main()
