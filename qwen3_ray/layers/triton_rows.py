"""RMSNorm and SwiGLU's gate on the GPU; `norm` and `activation` are their oracles.

Sums lie within one program and one row, in tiles whose shape follows from the row's width alone:
a row's bits depend neither on the other rows nor on their number. Rows are contiguous.
"""

# ruff: noqa: PLR0917 - pointers are given to kernels by position
from __future__ import annotations

import torch
import triton
import triton.language as tl

from qwen3_ray.gpu.triton_jit import kernel

_GATE_BLOCK = 1_024
_WIDE_ROW = 2_048
"""Rows beyond it get eight warps."""
_WARP_SIZE = 32


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """See `norm.add_rms_norm`."""
    out = torch.empty_like(x)
    num_rows, size = x.shape
    block, num_warps = launch_options(size)
    add_rms_norm_kernel[(num_rows,)](
        x, residual, weight, out, eps, size=size, block=block, num_warps=num_warps
    )
    return out


def launch_options(size: int) -> tuple[int, int]:
    """Of `add_rms_norm_kernel` for rows of `size`: its block, and how many warps take it.

    No more warps than have elements of their own: one that reads another's might find in the
    residual what that one has already stored.
    """
    block = triton.next_power_of_2(size)
    return block, min(8 if size > _WIDE_ROW else 4, max(1, block // _WARP_SIZE))


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `activation.silu_and_mul`."""
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_rows, triton.cdiv(size, _GATE_BLOCK))
    silu_and_mul_kernel[grid](gate_up, out, size=size, block=_GATE_BLOCK)
    return out


@kernel
def add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    size: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Program (row): rows of `size`, which `block`, a power of two, covers."""
    dtype = out.dtype.element_ty
    columns = tl.arange(0, block)
    inside = columns < size
    at = tl.program_id(0).to(tl.int64) * size + columns
    delta = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    total = (before + delta).to(dtype)
    tl.store(residual + at, total, mask=inside)
    wide = total.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide) / size + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, scale * normed.to(dtype).to(tl.float32), mask=inside)


@kernel
def silu_and_mul_kernel(
    gate_up: tl.tensor, out: tl.tensor, size: tl.constexpr, block: tl.constexpr
) -> None:
    """Program (row, part): `block` of the row's `size` columns."""
    dtype = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < size
    at = gate_up + row * (2 * size) + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + size, mask=inside, other=0.0).to(tl.float32)
    # Of a gate's negative absolute value, so that nothing overflows.
    small = tl.exp(-tl.abs(gate))
    silu = gate * tl.where(gate < 0, small, 1.0) / (1.0 + small)
    tl.store(out + row * size + columns, silu.to(dtype).to(tl.float32) * up, mask=inside)
