"""Weights of eight bits: what is kept of them, and products with them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers.numba_quantize import quantize
from qwen3_ray.layers.quantized import QuantizedMatrix
from tests.qwen3_ray.layers.test_packed import chains

POOL = ThreadPool(2)
ROW_COUNTS = (*range(1, 31), 97, 300)
SHAPES = [(72, 38), (100, 41), (5, 3), (48, 3073), (40, 6149)]
"""Outputs by inputs: both uneven; sums of one part, of two, of three."""
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random_weight(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Outputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (4 * torch.rand(shape[0], 1, generator=generator) - 3)
    return sizes * torch.randn(shape, generator=generator)


def kept(matrix: QuantizedMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Its integers [out_features, in_features] and its scales [out_features]."""
    panels = torch.from_numpy(matrix.panels)
    integers = panels.transpose(1, 2).reshape(-1, panels.shape[1])
    scales = torch.from_numpy(matrix.scales).flatten()
    assert not integers[matrix.out_features :].any()
    assert not integers[:, matrix.in_features :].any()
    assert not scales[matrix.out_features :].any()
    return integers[: matrix.out_features, : matrix.in_features], scales[: matrix.out_features]


@cache
def case(shape: tuple[int, int]) -> tuple[torch.Tensor, QuantizedMatrix, torch.Tensor]:
    """Rows, a matrix, and their product as the kernels must compute it."""
    x = torch.randn(max(ROW_COUNTS), shape[1], generator=torch.Generator().manual_seed(1))
    matrix = QuantizedMatrix(random_weight(shape).bfloat16(), pool=POOL)
    integers, scales = kept(matrix)
    return x, matrix, chains(x, integers) * scales


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_weight_is_off_by_half_a_scale_at_most(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = random_weight(shape).to(dtype)
    integers, scales = kept(QuantizedMatrix(weight, pool=POOL))
    assert torch.equal(scales, weight.float().abs().amax(1) / 127)
    assert integers.abs().max() == 127
    error = (integers.double() * scales.double()[:, None] - weight.double()).abs()
    # Dividing by the scale rounds: 127 is off by two units of float32 at most.
    assert bool((error <= scales.double()[:, None] * (0.5 + 127 * 2**-23)).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_weights_that_are_kept(shape: tuple[int, int]) -> None:
    x, matrix, _ = case(shape)
    integers, scales = kept(matrix)
    weight = integers.double() * scales.double()[:, None]
    expected = x.double() @ weight.T
    bound = 2**-23 * shape[1] * (x.double().abs() @ weight.abs().T)
    assert bool(((matrix.matmul(x).double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_output_is_one_chain_and_its_scale_at_every_row_count(shape: tuple[int, int]) -> None:
    x, matrix, expected = case(shape)
    for num_rows in ROW_COUNTS:
        assert torch.equal(matrix.matmul(x[:num_rows]), expected[:num_rows]), num_rows


@settings(max_examples=60, deadline=None)
@given(out_features=st.integers(1, 90), in_features=st.integers(1, 70), num_rows=st.integers(0, 40))
def test_any_shape_is_chains(out_features: int, in_features: int, num_rows: int) -> None:
    matrix = QuantizedMatrix(random_weight((out_features, in_features)), pool=POOL)
    x = torch.randn(num_rows, in_features)
    integers, scales = kept(matrix)
    product = matrix.matmul(x)
    assert product.is_contiguous()
    assert torch.equal(product, chains(x, integers) * scales)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 7, 97])
def test_threads_change_no_bits(num_threads: int, num_rows: int) -> None:
    weight = random_weight((520, 1024))
    x = torch.randn(num_rows, 1024)
    expected = QuantizedMatrix(weight, pool=POOL).matmul(x)
    assert torch.equal(QuantizedMatrix(weight, pool=ThreadPool(num_threads)).matmul(x), expected)


@pytest.mark.parametrize("num_parts", [1, 3, 40])
def test_parts_write_all_and_the_same(num_parts: int) -> None:
    matrix = case((100, 41))[1]
    panels = np.full_like(matrix.panels, 99)
    scales = np.full_like(matrix.scales, np.nan)
    weight = torch.zeros(104, 41).bfloat16()
    weight[:100] = random_weight((100, 41))
    flat = weight.flatten().view(torch.int16).numpy()
    for part in range(num_parts):
        quantize(part, num_parts, flat, 41, 41, panels, scales)
    assert bool((panels[:, 41:] == 99).all())
    np.testing.assert_array_equal(panels[:, :41], matrix.panels[:, :41])
    np.testing.assert_array_equal(scales, matrix.scales)


def test_outputs_without_weight_are_zero() -> None:
    """And those whose scale would be less than the least normal float."""
    weight = random_weight((30, 16))
    weight[3] = 0
    weight[7] = 1e-40
    integers, scales = kept(QuantizedMatrix(weight, pool=POOL))
    assert scales.nonzero().flatten().tolist() == [i for i in range(30) if i not in {3, 7}]
    assert not integers[[3, 7]].any()
    product = QuantizedMatrix(weight, pool=POOL).matmul(torch.randn(5, 16))
    assert not product[:, [3, 7]].any()
    assert bool((product[:, 8:] != 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float, dtype: torch.dtype) -> None:
    for place in ((0, 0), (29, 15), (13, 7)):
        weight = random_weight((30, 16)).to(dtype)
        weight[place] = value
        with pytest.raises(ValueError, match="NaN or infinity"):
            QuantizedMatrix(weight, pool=POOL)


def test_a_share_of_the_outputs_has_the_bits_of_the_whole() -> None:
    """Of column-parallel layers; row-parallel shares have scales of their own, never larger."""
    weight = random_weight((64, 48))
    x, whole = torch.randn(5, 48), QuantizedMatrix(weight, pool=POOL)
    shares = [QuantizedMatrix(weight[start : start + 16], pool=POOL) for start in range(0, 64, 16)]
    assert torch.equal(torch.cat([share.matmul(x) for share in shares], 1), whole.matmul(x))
    scales = [kept(QuantizedMatrix(weight[:, i : i + 24], pool=POOL))[1] for i in (0, 24)]
    assert torch.equal(torch.maximum(*scales), kept(whole)[1])
    assert not torch.equal(scales[0], scales[1])


def test_weights_may_be_in_parts_whose_rows_lie_apart() -> None:
    for sizes in ((16, 8, 40), (5, 20)):
        weight = random_weight((sum(sizes), 48)).bfloat16()
        apart = torch.full((sum(sizes), 70), float("nan")).bfloat16()
        apart[:, 10:58] = weight
        parts = QuantizedMatrix(*apart[:, 10:58].split(sizes), pool=POOL)
        whole = QuantizedMatrix(weight, pool=POOL)
        np.testing.assert_array_equal(parts.panels, whole.panels)
        np.testing.assert_array_equal(parts.scales, whole.scales)
