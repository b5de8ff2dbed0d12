"""Weights packed for the CPU: in panels of halves where float16 holds them, else of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from qwen3_ray.cpu import huge_pages
from qwen3_ray.cpu.numba_tiles import LANES, UNROLL
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers import numba_linear, numba_packing

_Element = TypeVar("_Element", np.uint16, np.float32, np.int8)
_Panel = TypeVar("_Panel", np.uint16, np.float32)

MAX_ROUNDING = 1e-5
"""Largest norm of what rounding to float16 changes, relative to the norm of the tensor."""


class PackedMatrix:
    """A weight [out_features, in_features]; each row of a product has the same bits in any batch.

    Activations and sums are float32.
    """

    row_invariant = True

    def __init__(self, *weights: torch.Tensor, pool: ThreadPool, halves: bool) -> None:
        """Copy the rows of `weights`, one below the other, into halves if they may and do fit.

        They are on the CPU and of one float dtype; rows may lie apart, and are read in place.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        self.out_features = sum(weight.shape[0] for weight in weights)
        self.in_features = weights[0].shape[1]
        self._pool = pool
        rows = whole_panels(weights)
        self.panels: numba_packing.Panels
        """[num_panels, k, 8], see `numba_linear`."""
        self.is_half = False
        if halves:
            self.panels, self.is_half = _pack(rows, np.uint16, pool)
        if not self.is_half:
            self.panels, _ = _pack(rows, np.float32, pool)
        self.name = "fp16-panels" if self.is_half else "fp32-panels"

    @property
    def width(self) -> int:
        """Columns of a product as the kernels write it: `out_features` and the panels' rest."""
        return self.panels.shape[0] * LANES

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [num_rows, in_features] -> contiguous [num_rows, out_features]."""
        out = multiply(x, self.panels, self._pool, half=self.is_half)
        return out[:, : self.out_features].contiguous()


def multiply(
    x: torch.Tensor,
    panels: npt.NDArray[np.generic],
    pool: ThreadPool,
    *,
    half: bool = False,
    scales: npt.NDArray[np.float32] | None = None,
) -> torch.Tensor:
    """float32 [num_rows, in_features] -> [num_rows, num_panels * 8]; see `numba_linear.multiply`.

    With `scales` the panels are bytes.
    """
    num_rows = x.shape[0]
    num_panels, k, _ = panels.shape
    out = huge_pages.empty(num_rows, num_panels * LANES)
    if num_rows > 0:
        tiles = np.empty(num_rows * k, np.float32)
        pool.run(numba_linear.interleave, tiles.size, x.contiguous().numpy(), k, tiles)
        counter = np.zeros(1, np.int64)
        pool.run(
            numba_linear.multiply,
            2 * num_rows * panels.size,
            counter.ctypes.data,
            tiles.ctypes.data,
            num_rows,
            panels.ctypes.data,
            num_panels,
            k,
            half,
            out.data_ptr(),
            0 if scales is None else scales.ctypes.data,
            None if scales is None else True,
        )
    return out


def as_array(weight: torch.Tensor) -> numba_packing.Weight:
    """The elements of a contiguous weight as `numba_packing` wants them."""
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.int16).numpy()
    if weight.dtype == torch.float16:
        return weight.view(torch.uint16).numpy()
    return weight.float().numpy()


def new_panels(num_outputs: int, width: int, dtype: type[_Element]) -> npt.NDArray[_Element]:
    """Panels for so many outputs of sums of `width` addends; they hold zeros."""
    num_panels = max(numba_linear.MIN_PANELS, -(-num_outputs // LANES))
    return huge_pages.zeros((num_panels, -(-width // UNROLL) * UNROLL, LANES), dtype)


def whole_panels(weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The same rows in parts that each fill panels; only uneven ones are copied for it."""
    if all(weight.shape[0] % LANES == 0 for weight in weights):
        return weights
    rows = torch.cat(list(weights))
    return [F.pad(rows, (0, 0, 0, -rows.shape[0] % LANES))]


def _pack(
    weights: Sequence[torch.Tensor], dtype: type[_Panel], pool: ThreadPool
) -> tuple[npt.NDArray[_Panel], bool]:
    """Panels, and whether `dtype` holds the weight as well as sums need it."""
    num_outputs, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    panels = new_panels(num_outputs, width, dtype)
    norms = np.zeros((panels.shape[0], 2))
    first = 0
    for weight in weights:
        last = first + weight.shape[0] // LANES
        rows, stride = flat_rows(weight)
        pool.run(
            numba_packing.pack,
            weight.numel(),
            rows,
            width,
            stride,
            panels[first:last],
            norms[first:last],
        )
        first = last
    total, changed = norms.sum(0).tolist()
    if not math.isfinite(total):
        raise ValueError("the weight holds NaN or infinity")
    return panels, changed <= MAX_ROUNDING**2 * total


def flat_rows(weight: torch.Tensor) -> tuple[numba_packing.Weight, int]:
    """The elements from the first row's first to the last row's last, and the rows' distance."""
    num_rows, width = weight.shape
    if num_rows == 0 or weight.stride(1) != 1:
        weight = weight.contiguous()
    stride = weight.stride(0)
    size = (num_rows - 1) * stride + width if num_rows > 0 else 0
    return as_array(weight.as_strided((size,), (1,))), stride
