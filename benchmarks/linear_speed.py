"""Our products of packed weights against FBGEMM's, the fastest that torch has for fp16 weights.

    python -m benchmarks.linear_speed
    python -m benchmarks.linear_speed --shapes 1024x4096 --rows 1 16

Both in turns in one process, on all cores. Each call takes the next of many weights, as the layers
of a model do, so that these come from memory. A ratio above 1 says that ours are quicker; `=` says
that all bits were the same. Shapes are inputs by outputs: of Qwen3-0.6B, the last one of Qwen3-4B.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers.packed import PackedMatrix

SHAPES = ("1024x4096", "2048x1024", "3072x1024", "9728x2560")
ROW_COUNTS = (1, 4, 8, 16, 32, 128, 512)
WEIGHT_BYTES = 200_000_000
"""Of all weights of a shape, of each kind: more than caches hold."""
MIN_ROUND_S = 0.05

Product = Callable[[torch.Tensor], torch.Tensor]


class Ratio(NamedTuple):
    """FBGEMM's time over ours, the best rounds of each, and whether their bits are the same."""

    times: float
    same_bits: bool


def make_products(
    in_features: int, out_features: int, pool: ThreadPool, num_bytes: int
) -> tuple[list[Product], list[Product]]:
    """Ours and FBGEMM's, of as many weights as take `num_bytes`; at least two."""
    ours: list[Product] = []
    theirs: list[Product] = []
    for _ in range(max(2, num_bytes // (2 * in_features * out_features))):
        weight = torch.randn(out_features, in_features).bfloat16()
        ours.append(PackedMatrix(weight, pool=pool, halves=True).matmul)
        theirs.append(_fbgemm(weight))
    return ours, theirs


def compare(
    ours: Sequence[Product], theirs: Sequence[Product], x: torch.Tensor, num_rounds: int
) -> Ratio:
    """Both in turns, after calls that warm them up."""
    _seconds(ours, x, len(ours))
    num_calls = _num_calls(theirs, x)
    seconds = [[_seconds(kind, x, num_calls) for kind in (ours, theirs)] for _ in range(num_rounds)]
    own, other = map(min, zip(*seconds, strict=True))
    return Ratio(other / own, torch.equal(ours[0](x), theirs[0](x)))


def _fbgemm(weight: torch.Tensor) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def product(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
        return y

    return product


def _num_calls(products: Sequence[Product], x: torch.Tensor) -> int:
    """Calls that take long enough to be timed; whole turns of all weights."""
    seconds = _seconds(products, x, len(products))
    return len(products) * max(1, round(MIN_ROUND_S / seconds))


def _seconds(products: Sequence[Product], x: torch.Tensor, num_calls: int) -> float:
    began = time.perf_counter()
    for index in range(num_calls):
        products[index % len(products)](x)
    return time.perf_counter() - began


def main() -> None:
    """Print a row for each number of rows and a column for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="inputs x outputs")
    parser.add_argument("--rows", nargs="+", type=int, default=ROW_COUNTS)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise SystemExit("this torch has no FBGEMM to compare with")
    pool = ThreadPool(torch.get_num_threads())
    print(f"{pool.num_threads} threads; FBGEMM's time over ours, best of {args.rounds} rounds")
    table: dict[int, list[str]] = {num_rows: [] for num_rows in args.rows}
    for shape in args.shapes:
        in_features, out_features = map(int, shape.split("x"))
        ours, theirs = make_products(in_features, out_features, pool, WEIGHT_BYTES)
        for num_rows, cells in table.items():
            x = torch.randn(num_rows, in_features)
            ratio = compare(ours, theirs, x, args.rounds)
            cells.append(f"{ratio.times:.2f}{'=' if ratio.same_bits else ' '}")
    print("rows ", *(f"{shape:>12}" for shape in args.shapes))
    for num_rows, cells in table.items():
        print(f"{num_rows:5}", *(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
