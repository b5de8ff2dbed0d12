"""Rows of activations as float8, each with a scale of its own."""
# ruff: noqa: PLR0917 - Triton's functions are called by position

from __future__ import annotations

import torch
import triton
import triton.language as tl

from qwen3_ray.gpu.triton_jit import kernel

MAX_FP8 = 448.0
"""Largest float8_e4m3fn; a row's largest element becomes it."""
SMALLEST_MAXIMUM = 1e-30
"""A row whose largest element is smaller is scaled as if that were it: no scale is 0."""

_MAX_FP8 = tl.constexpr(MAX_FP8)
_SMALLEST_MAXIMUM = tl.constexpr(SMALLEST_MAXIMUM)


@kernel
def quantize_row(
    x: tl.tensor,
    rows: tl.tensor,
    scales: tl.tensor,
    in_features: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Program i: row i of x [num_rows, in_features], to `rows` [num_rows, width] and `scales`.

    Beyond `in_features` a row is filled with zeros. `block` is at least `width`.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    values = tl.load(x + row * in_features + column, mask=column < in_features, other=0.0)
    values = values.to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values), 0), _SMALLEST_MAXIMUM), _MAX_FP8)
    # NaN stays NaN, and infinity becomes it: the product of such a row shows what it is of.
    scaled = tl.clamp(tl.div_rn(values, scale), -_MAX_FP8, _MAX_FP8, tl.PropagateNan.ALL)
    tl.store(rows + row * width + column, scaled.to(tl.float8e4nv), mask=column < width)
    tl.store(scales + row, scale)


def quantize_rows(x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[num_rows, in_features] -> float8_e4m3fn [num_rows, width], float32 scales [num_rows, 1].

    `rows * scales` is x as near as float8 holds it; columns from in_features on are zero.
    """
    num_rows, in_features = x.shape
    rows = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_rows, 1, dtype=torch.float32, device=x.device)
    if num_rows > 0:
        block, num_warps = launch_options(width)
        quantize_row[(num_rows,)](
            x.contiguous(),
            rows,
            scales,
            in_features=in_features,
            width=width,
            block=block,
            num_warps=num_warps,
        )
    return rows, scales


def launch_options(width: int) -> tuple[int, int]:
    """The kernel's block for such rows, and how many warps take it, a few vectors a thread."""
    block = triton.next_power_of_2(width)
    return block, min(max(block // 512, 1), 16)
