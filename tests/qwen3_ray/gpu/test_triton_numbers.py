"""Casts and products of tiles mean the same in the interpreter, on a GPU and in torch."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl

from qwen3_ray.gpu.triton_dot import dot
from qwen3_ray.gpu.triton_jit import kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@kernel
def cast_all(x: tl.tensor, out: tl.tensor, count: tl.constexpr) -> None:
    index = tl.arange(0, count)
    tl.store(out + index, tl.load(x + index).to(out.dtype.element_ty))


@kernel
def multiply_tile(a: tl.tensor, b: tl.tensor, out: tl.tensor, size: tl.constexpr) -> None:
    rows, columns = tl.arange(0, size)[:, None], tl.arange(0, size)[None, :]
    offsets = rows * size + columns
    total = tl.zeros([size, size], tl.float32)
    tl.store(out + offsets, dot(tl.load(a + offsets), tl.load(b + offsets), total))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_casts_round_to_the_nearest_and_ties_to_even(dtype: torch.dtype) -> None:
    x = torch.randn(4096, device=DEVICE) * torch.logspace(-5, 2, 4096, device=DEVICE)
    # Between two neighbours, normal and subnormal ones of float8, and up to the next power of two.
    x[:32] = torch.arange(32, device=DEVICE) * 2.0**-10
    x[32:64] = 1 + torch.arange(32, device=DEVICE) / 16
    x[64:70] = torch.tensor([0.0, -0.0, 448.0, -448.0, 1.99999, torch.nan], device=DEVICE)
    x[70:102] = 1 + torch.arange(32, device=DEVICE) / 256
    x = torch.where(x.isnan(), x, x.clamp(-448, 448))
    out = torch.empty(4096, device=DEVICE, dtype=dtype)
    cast_all[(1,)](x, out, 4096)
    torch.testing.assert_close(out.float(), x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_row_of_a_product_has_the_same_bits_wherever_it_lies(dtype: torch.dtype) -> None:
    a, b = (torch.randn(64, 64, device=DEVICE).to(dtype) for _ in range(2))
    out, moved = torch.empty(2, 64, 64, device=DEVICE)
    order = torch.randperm(64, device=DEVICE)
    multiply_tile[(1,)](a, b, out, 64)
    multiply_tile[(1,)](a[order].contiguous(), b, moved, 64)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(moved, out[order])
