"""What this machine can do at most: reading memory, fp32 multiply-add, matrix products.

    python -m benchmarks.ceilings

Prints one JSON line. Needs no compiler: the loops are Numba's, the matrix products torch's. Each
figure is the best of a few runs over all cores that this process may use.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

NUM_ACCUMULATORS = 10
"""Independent chains: two units with a latency of four or five cycles are kept busy."""
HIDDEN, INTERMEDIATE, ROWS = 1_024, 3_072, 512
"""Of the products: Qwen3-0.6B's gate projection on a prompt of 512 tokens."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best rates seen, of all cores together."""

    read_bytes_per_s: float
    multiply_adds_flops: float
    """Operations a second; one multiply-add is two."""
    gemm_flops: float
    """Of the best of torch's matrix products with fp32 activations."""

    @property
    def peak_flops(self) -> float:
        """The better of the two ways to count."""
        return max(self.multiply_adds_flops, self.gemm_flops)


def measure(
    *, num_bytes: int = 512 << 20, num_multiply_adds: int = 20_000_000, repeats: int = 5
) -> Ceilings:
    """Takes about three seconds with the defaults."""
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_cores)
    numba.set_num_threads(min(num_cores, numba.config.NUMBA_NUM_THREADS))
    values = np.ones(num_bytes // 4, np.float32)
    read_s = _best(lambda: _total(values), repeats)
    sums = np.zeros(numba.get_num_threads(), np.float32)
    chains_s = _best(lambda: _multiply_adds(sums, num_multiply_adds), repeats)
    num_operations = 2 * _LANES * NUM_ACCUMULATORS * num_multiply_adds * sums.size
    return Ceilings(values.nbytes / read_s, num_operations / chains_s, _gemm_flops(repeats))


def _best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@numba.njit(parallel=True, fastmath=True)
def _total(values: np.ndarray) -> float:
    total = np.float32(0)
    for index in numba.prange(values.size):
        total += values[index]
    return total


def _lanes() -> int:
    """Of the widest vectors: more would spill, fewer would leave units idle."""
    return 16 if llvm.get_host_cpu_features().get("avx512f") else 8


_LANES = _lanes()


@intrinsic
def _chains(_context, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`count` multiply-adds on each of `NUM_ACCUMULATORS` vectors; the first lane of their sum."""

    def code(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        vector = ir.VectorType(ir.FloatType(), _LANES)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{_LANES}f32")
        factor, addend = (ir.Constant(vector, [value] * _LANES) for value in (0.999, 0.001))
        chains = [cgutils.alloca_once(builder, vector) for _ in range(NUM_ACCUMULATORS)]
        for index, chain in enumerate(chains):
            builder.store(ir.Constant(vector, [float(index)] * _LANES), chain)
        with cgutils.for_range(builder, arguments[0]):
            for chain in chains:
                product = builder.call(fma, [builder.load(chain), factor, addend])
                builder.store(product, chain)
        total = builder.load(chains[0])
        for chain in chains[1:]:
            total = builder.fadd(total, builder.load(chain))
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.float32(count), code


@numba.njit(parallel=True)
def _multiply_adds(sums: np.ndarray, count: int) -> None:
    for worker in numba.prange(sums.size):
        sums[worker] = _chains(count)


@numba.njit
def chains_result(count: int) -> float:
    """What one worker's loop comes to, for those who doubt that it runs."""
    return _chains(count)


@torch.inference_mode()
def _gemm_flops(repeats: int) -> float:
    """The best of fp32 weights and fp16 packs, at the model's own shape."""
    x, weight = torch.randn(ROWS, HIDDEN), torch.randn(INTERMEDIATE, HIDDEN)
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    if "fbgemm" in torch.backends.quantized.supported_engines:
        pack = torch.ops.quantized.linear_prepack_fp16(weight, None)
        ways.append(lambda: torch.ops.quantized.linear_dynamic_fp16(x, pack))
    seconds = min(_best(way, 3 * repeats) for way in ways)
    return 2 * ROWS * HIDDEN * INTERMEDIATE / seconds


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    print(json.dumps(asdict(measure())))


if __name__ == "__main__":
    main()
