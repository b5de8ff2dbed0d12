"""Float8 weights and activations: what rounding to them changes, and the product itself."""

from __future__ import annotations

import pytest
import torch

from qwen3_ray.layers import fp8
from qwen3_ray.layers.fp8 import Fp8Matrix, is_supported, quantize_weight
from qwen3_ray.layers.triton_fp8 import quantize_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
needs_products = pytest.mark.skipif(not is_supported(DEVICE), reason="no float8 products here")


def pack(*weights: torch.Tensor) -> Fp8Matrix:
    return Fp8Matrix.pack(*weights, device=DEVICE)


def quantized(*weights: torch.Tensor) -> torch.Tensor:
    """What the weights have become, in fp64 and without padding."""
    rows, scales = quantize_weight(*weights, device=DEVICE)
    width = weights[0].shape[1]
    return rows[: len(scales), :width].double() * scales[:, None].double()


@pytest.mark.parametrize("chunk", [1 << 22, 1])
def test_each_output_has_the_scale_of_its_largest_weight(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "_CHUNK", chunk)
    weight = (torch.randn(37, 100) * torch.logspace(-6, 6, 37)[:, None]).bfloat16()
    rows, scales = quantize_weight(weight[:20], weight[20:], device=DEVICE)
    assert (rows.shape, rows.dtype, scales.shape) == ((48, 112), torch.float8_e4m3fn, (37,))
    torch.testing.assert_close(scales.cpu(), weight.float().abs().amax(1) / 448, rtol=1e-6, atol=0)
    assert (rows[:37].float().abs().amax(1) == 448).all()
    assert (rows[37:].float() == 0).all()
    assert (rows[:, 100:].float() == 0).all()
    # Three bits behind the leading one; below 2^-6 of a scale numbers are 2^-9 apart.
    bound = (weight.double().abs() / 16).maximum(scales.cpu().double()[:, None] * 2**-10)
    assert ((quantized(weight).cpu() - weight.double()).abs() <= bound).all()


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.zeros(16, 16)
    weight[3] = 448
    assert torch.equal(quantized(weight).cpu(), weight.double())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    weights = [torch.zeros(4, 8), torch.zeros(4, 8)]
    weights[1][3, 7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack(*weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("in_features", [16, 100, 700])
def test_each_row_of_activations_is_scaled_and_rounded(
    in_features: int, dtype: torch.dtype
) -> None:
    x = (
        torch.randn(9, in_features, device=DEVICE)
        * torch.logspace(-3, 3, 9, device=DEVICE)[:, None]
    )
    x[4] = 0
    x = x.to(dtype)
    width = -(-in_features // 16) * 16
    rows, scales = quantize_rows(x, width)
    assert (rows.shape, rows.dtype, scales.shape) == ((9, width), torch.float8_e4m3fn, (9, 1))
    expected = x.float().abs().amax(1, keepdim=True).clamp(min=1e-30) / 448
    assert torch.equal(scales, expected)
    rounded = (x.float() / expected).to(torch.float8_e4m3fn)
    assert torch.equal(rows[:, :in_features].view(torch.uint8), rounded.view(torch.uint8))
    assert (rows[:, in_features:].float() == 0).all()
    assert quantize_rows(x[:0], width)[0].shape == (0, width)


@needs_products
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(48, 64), (37, 100), (5, 16)])
def test_the_product_is_that_of_what_was_kept(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape).bfloat16()
    x = torch.randn(7, shape[1], device=DEVICE).to(dtype)
    matrix = pack(weight[:2], weight[2:])
    assert (matrix.out_features, matrix.in_features) == shape
    y = matrix.matmul(x)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((7, shape[0]), dtype, True)
    rows, scales = quantize_rows(x, shape[1])
    expected = (rows.double() * scales.double()) @ quantized(weight).T
    # Of bfloat16, to which products are rounded.
    error = (y.double() - expected).norm() / expected.norm()
    assert error < 3e-3
    full = x.double() @ weight.to(DEVICE).double().T
    assert 1e-3 < (y.double() - full).norm() / full.norm() < 0.06


@needs_products
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of infinity by infinity
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_alone_in_it(value: float) -> None:
    matrix, x = pack(torch.randn(32, 48)), torch.randn(5, 48, device=DEVICE)
    x[2, 7] = value
    y = matrix.matmul(x)
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4]].isfinite().all()


def test_it_claims_no_exactness() -> None:
    matrix = pack(torch.randn(16, 16))
    assert (matrix.name, matrix.row_invariant) == ("fp8-scaled-mm", False)


@pytest.mark.parametrize(("capability", "supported"), [((8, 6), False), ((8, 9), True)])
def test_devices_with_float8_products_are_known(
    capability: tuple[int, int], *, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert is_supported(torch.device("cuda")) is supported
    assert is_supported(CPU)
