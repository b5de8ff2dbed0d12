"""Products of a CUDA device: as close as torch's own, and a row's bits depend on that row alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qwen3_ray.layers import triton_linear
from qwen3_ray.layers.triton_linear import SPLIT, multiply, multiply_apart, multiply_whole

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Whole splits; one that ends within a step; one of a single step; less than a split; than a step.
WIDTHS = [2 * SPLIT, 2 * SPLIT + 100, SPLIT + 8, 300, 24]
WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "apart": multiply_apart,
    "whole, 64 rows": lambda x, weight: multiply_whole(x, weight, block_m=64),
    "whole, 128 rows": lambda x, weight: multiply_whole(x, weight, block_m=128),
}


def case(
    num_rows: int, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and a weight, both amid NaN in memory."""
    torch.manual_seed(in_features)
    x = torch.full((num_rows + 2, in_features), torch.nan)
    weight = torch.full((out_features + 2, in_features), torch.nan)
    x[1:-1], weight[1:-1] = torch.randn(num_rows, in_features), torch.randn(out_features, 1)
    weight[1:-1] += torch.randn(out_features, in_features)
    return x.to(DEVICE, dtype)[1:-1], weight.to(DEVICE, dtype)[1:-1]


def error(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    expected = x.double() @ weight.double().T
    return float((y.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", WIDTHS)
def test_it_is_as_close_to_the_product_as_torch(
    in_features: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = case(70, 140, in_features, dtype)
    own = error(x @ weight.T, x, weight)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **options: empty(*a, **options).fill_(torch.nan))
    results = {name: way(x, weight) for name, way in WAYS.items()}
    for y in results.values():
        assert y.dtype == dtype
        assert y.is_contiguous()
        assert error(y, x, weight) <= 1.2 * own
        assert torch.equal(y, results["apart"])


@pytest.mark.parametrize("min_tiles", [1, 3, 128], ids=["whole", "by rows", "apart"])
def test_a_row_has_the_same_bits_among_any_number(
    min_tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 64 rows with two tiles of outputs, the middle one changes its way."""
    x, weight = case(70, 130, 2 * SPLIT + 72)
    expected = multiply_whole(x, weight, block_m=64)
    monkeypatch.setattr(triton_linear, "MIN_TILES", min_tiles)
    for num_rows in [1, 2, 17, 64, 65, 70]:
        assert torch.equal(multiply(x[:num_rows], weight), expected[:num_rows])
        assert torch.equal(multiply(x[-num_rows:], weight), expected[-num_rows:])


def test_a_row_has_the_same_bits_among_all_numbers_and_in_any_place() -> None:
    x, weight = case(70, 24, 300)
    expected = multiply(x, weight, split=128)
    for num_rows in range(1, 71):
        rows = torch.randperm(70, device=DEVICE)[:num_rows]
        assert torch.equal(multiply(x[rows], weight, split=128), expected[rows])


def test_another_size_of_splits_has_other_bits() -> None:
    """What would show if the order of sums depended on the way."""
    x, weight = case(5, 40, 4 * SPLIT, torch.float32)
    expected = multiply(x, weight)
    for split in (SPLIT // 2, SPLIT * 2):
        other = multiply(x, weight, split=split)
        assert not torch.equal(other, expected)
        assert torch.equal(other, multiply_whole(x, weight, block_m=64, split=split))
        assert error(other, x, weight) < 1e-6


@pytest.mark.parametrize("block_m", [64, 128])
def test_tiles_of_many_rows_and_outputs_cover_the_product(block_m: int) -> None:
    """More tiles of rows than go through the outputs together, and an uneven rest of them."""
    x, weight = case(block_m * 9 + 5, 130, 40, torch.float32)
    y = multiply_whole(x, weight, block_m=block_m)
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_no_rows_are_no_work(way: str) -> None:
    x, weight = case(0, 130, 2 * SPLIT)
    assert WAYS[way](x, weight).shape == (0, 130)


def test_a_row_that_is_not_finite_is_alone_in_it() -> None:
    x, weight = case(9, 30, SPLIT + 8)
    expected = multiply(x, weight)
    x[4, 3] = torch.nan
    y = multiply(x, weight)
    assert y[4].isnan().all()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(y[others], expected[others])


def test_rows_may_lie_apart() -> None:
    x, weight = case(9, 30, 200)
    assert torch.equal(
        multiply(x[:, :88], weight[:, :88].contiguous()),
        multiply(x[:, :88].contiguous(), weight[:, :88].contiguous()),
    )


@pytest.mark.gpu
def test_weights_of_more_than_two_billion_elements() -> None:
    x = torch.randn(3, 16_384, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(140_000, 16_384, device=DEVICE, dtype=torch.bfloat16)
    assert torch.equal(multiply(x, weight)[:, -200:], multiply(x, weight[-200:].contiguous()))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728), (151_936, 2560)], ids=str
)
def test_qwen3_4b(shape: tuple[int, int]) -> None:
    """On the device itself: other instructions in one of the ways would show here."""
    x, weight = (torch.randn(size, device=DEVICE).bfloat16() for size in ((2048, shape[1]), shape))
    expected = multiply(x, weight)
    assert torch.equal(multiply_whole(x[:300], weight, block_m=64), expected[:300])
    for num_rows in [1, 2, 16, 33, 64, 65, 128, 129, 256, 600]:
        assert torch.equal(multiply(x[-num_rows:], weight), expected[-num_rows:])
        assert torch.equal(multiply_apart(x[:num_rows], weight), expected[:num_rows])
