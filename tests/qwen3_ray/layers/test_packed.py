"""Products of packed weights: every output is one chain of fused multiply-adds over k."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers import numba_linear
from qwen3_ray.layers.packed import PackedMatrix
from tests.exactness.controls import torch_product

POOL = ThreadPool(2)
ROW_COUNTS = (*range(1, 31), 97, 300)
SHAPES = [(72, 38), (100, 41), (5, 3), (48, 3073), (40, 6149)]
"""Outputs by inputs: both uneven; sums of one part, of two, of three."""
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines


def fused(
    total: npt.NDArray[np.float32], product: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Float32 nearest to `total + product`, rounded once.

    The sum is rounded to odd in float64 first, from where rounding to nearest is right.
    """
    wide = total.astype(np.float64)
    rough = wide + product
    other = rough - wide
    error = (wide - (rough - other)) + (product - other)
    is_even = rough.view(np.int64) % 2 == 0
    outward = np.nextafter(rough, np.copysign(np.inf, error))
    return np.where((error != 0) & is_even, outward, rough).astype(np.float32)


def chains(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product as the kernels must compute it."""
    rows, columns = x.double().numpy(), weight.double().numpy().T
    total = np.zeros((rows.shape[0], columns.shape[1]), np.float32)
    for k in range(rows.shape[1]):
        total = fused(total, rows[:, k, None] * columns[k])
    return torch.from_numpy(total)


def random_case(out_features: int, in_features: int, num_rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(out_features * in_features)
    shapes = (num_rows, in_features), (out_features, in_features)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@cache
def case(shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Rows, a weight that halves hold unless it is float32, and their product."""
    x, weight = random_case(*shape, max(ROW_COUNTS))
    weight = weight.to(dtype)
    return x, weight, chains(x, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["halves", "floats"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_output_is_one_chain_at_every_row_count(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight, expected = case(shape, dtype)
    matrix = PackedMatrix(weight, pool=POOL, halves=True)
    assert matrix.is_half == (dtype != torch.float32)
    assert (matrix.out_features, matrix.in_features) == shape
    for num_rows in ROW_COUNTS:
        assert torch.equal(matrix.matmul(x[:num_rows]), expected[:num_rows]), num_rows


@settings(max_examples=60, deadline=None)
@given(
    out_features=st.integers(1, 90),
    in_features=st.integers(1, 70),
    num_rows=st.integers(0, 40),
    halves=st.booleans(),
)
def test_any_shape_is_chains(
    out_features: int, in_features: int, num_rows: int, halves: bool
) -> None:
    x, weight = random_case(out_features, in_features, num_rows)
    weight = weight.bfloat16().half().bfloat16()  # halves would round the tiniest
    matrix = PackedMatrix(weight, pool=POOL, halves=halves)
    assert matrix.is_half == halves
    product = matrix.matmul(x)
    assert product.is_contiguous()
    assert torch.equal(product, chains(x, weight))


def test_the_oracle_tells_a_chain_from_other_sums() -> None:
    """The control: of another order, and of products rounded before they are added."""
    x, weight, expected = case((72, 38), torch.bfloat16)
    rounded = torch.zeros_like(expected)
    for k in range(x.shape[1]):
        rounded += x[:, k, None] * weight[:, k].float()
    for other in (chains(x.flip(1), weight.flip(1)), rounded):
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)
        assert not torch.equal(other, expected)


@pytest.mark.skipif(not HAS_FBGEMM, reason="this torch has no packed products of its own")
@pytest.mark.parametrize("shape", [(48, 41), (512, 256), (256, 1024), (64, 3100)], ids=str)
def test_bits_are_those_of_fbgemm(shape: tuple[int, int]) -> None:
    """Where its rows lie in tiles of the full height."""
    x, weight = random_case(*shape, 30)
    weight = weight.bfloat16()
    expected = torch.ops.quantized.linear_dynamic_fp16(
        x, torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
    )
    assert torch.equal(PackedMatrix(weight, pool=POOL, halves=True).matmul(x), expected)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 7, 97])
def test_threads_change_no_bits(num_threads: int, num_rows: int) -> None:
    x, weight = random_case(520, 1024, num_rows)
    weight = weight.bfloat16()
    expected = PackedMatrix(weight, pool=POOL, halves=True).matmul(x)
    threaded = PackedMatrix(weight, pool=ThreadPool(num_threads), halves=True)
    assert torch.equal(threaded.matmul(x), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("num_rows", [2, 3, 5, 8, 20])
def test_what_is_not_finite_in_a_row_stays_there(value: float, num_rows: int) -> None:
    x, weight, expected = case((100, 41), torch.bfloat16)
    broken = x[:num_rows].clone()
    broken[1, 40] = value
    product = PackedMatrix(weight, pool=POOL, halves=True).matmul(broken)
    others = torch.arange(num_rows) != 1
    assert torch.equal(product[others], expected[:num_rows][others])
    assert not product[1].isfinite().any()


def test_rows_may_lie_apart() -> None:
    x, weight, expected = case((72, 38), torch.bfloat16)
    apart = torch.full((9, 60), float("nan"))
    apart[:, :38] = x[:9]
    product = PackedMatrix(weight, pool=POOL, halves=True).matmul(apart[:, :38])
    assert torch.equal(product, expected[:9])


def guarded(size: int) -> npt.NDArray[np.float32]:
    """Room for `size` floats, between others; all NaN."""
    return np.full(size + 128, np.nan, np.float32)[64:-64]


def is_intact(array: npt.NDArray[np.float32]) -> bool:
    assert array.base is not None
    base = np.asarray(array.base)
    return bool(np.isnan(base[:64]).all() and np.isnan(base[-64:]).all())


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 8, 13])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["halves", "floats"])
def test_all_of_the_output_is_written_and_nothing_beyond(
    num_parts: int, num_rows: int, dtype: torch.dtype
) -> None:
    """The kernels as other kernels call them: every part, over memory that holds anything."""
    x, weight, expected = case((100, 41), dtype)
    matrix = PackedMatrix(weight, pool=POOL, halves=True)
    num_panels, k, lanes = matrix.panels.shape
    tiles, out = guarded(num_rows * k), guarded(num_rows * num_panels * lanes)
    counter = np.zeros(1, np.int64)
    for part in range(num_parts):
        numba_linear.interleave(part, num_parts, x[:num_rows].numpy(), k, tiles)
    for part in range(num_parts):
        numba_linear.multiply(
            part,
            num_parts,
            counter.ctypes.data,
            tiles.ctypes.data,
            num_rows,
            matrix.panels.ctypes.data,
            num_panels,
            k,
            matrix.is_half,
            out.ctypes.data,
        )
    assert is_intact(tiles)
    assert is_intact(out)
    written = out.reshape(num_rows, num_panels * lanes)
    np.testing.assert_array_equal(written[:, :100], expected[:num_rows])
    assert not written[:, 100:].any()


def test_every_finite_half_is_kept() -> None:
    """Subnormal ones and both zeros too, from any type that holds them."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16)
    weight = values[values.isfinite()].reshape(124, 512)
    for source in (weight, weight.float(), weight.double()):
        matrix = PackedMatrix(source, pool=POOL, halves=True)
        assert matrix.name == "fp16-panels"
        product = torch_product(matrix)
        assert torch.equal(product.matmul(torch.eye(512)).T, weight.float())
        kept = torch.from_numpy(matrix.panels.view(np.int16)).transpose(1, 2).reshape(-1, 512)
        assert torch.equal(kept[:124], weight.view(torch.int16))


def test_bfloat16_is_kept_in_floats_to_the_bit() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    weight = values[values.isfinite()].reshape(510, 128)
    matrix = PackedMatrix(weight, pool=POOL, halves=True)
    assert matrix.name == "fp32-panels"
    kept = torch.from_numpy(matrix.panels).transpose(1, 2).reshape(-1, 128)[:510]
    assert torch.equal(kept, weight.float())


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(40, 24),
        torch.tensor([[1.0, 65_536.0]]),
        torch.tensor([[1.0, 65_536.0]]).bfloat16(),
        1e-6 * torch.randn(40, 24).bfloat16(),
        1e-30 * torch.randn(40, 24).bfloat16(),
    ],
    ids=[
        "rounds too much",
        "too large",
        "too large in bf16",
        "too small",
        "tiny",
    ],
)
def test_what_halves_do_not_hold_stays_float32(weight: torch.Tensor) -> None:
    matrix = PackedMatrix(weight, pool=POOL, halves=True)
    assert (matrix.is_half, matrix.name) == (False, "fp32-panels")
    x = torch.randn(3, weight.shape[1])
    torch.testing.assert_close(matrix.matmul(x), x @ weight.float().T)


def test_a_few_tiny_weights_do_not_matter() -> None:
    weight = torch.randn(40, 24).bfloat16()
    weight[0, 0] = 1e-8
    assert PackedMatrix(weight, pool=POOL, halves=True).is_half
    assert not PackedMatrix(weight, pool=POOL, halves=False).is_half
