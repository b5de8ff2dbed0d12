"""Weights packed for the CPU: in panels of halves where float16 holds them, else of floats."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from qwen3_ray.cpu import huge_pages
from qwen3_ray.cpu.numba_tiles import LANES, UNROLL
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers import numba_linear, numba_packing

_Element = TypeVar("_Element", np.uint16, np.float32)

MAX_ROUNDING = 1e-5
"""Largest norm of what rounding to float16 changes, relative to the norm of the tensor."""


class PackedMatrix:
    """A weight [out_features, in_features]; each row of a product has the same bits in any batch.

    Activations and sums are float32.
    """

    row_invariant = True

    def __init__(self, weight: torch.Tensor, pool: ThreadPool, *, halves: bool) -> None:
        """Copy `weight`, of any float dtype, on the CPU: into halves if it may and fits."""
        self.out_features, self.in_features = weight.shape
        self._pool = pool
        rows = _as_array(weight)
        packed = _pack_halves(rows) if halves else None
        self.is_half = packed is not None
        self.name = "fp16-panels" if self.is_half else "fp32-panels"
        self.panels = _pack_floats(rows) if packed is None else packed
        """[num_panels, k, 8], see `numba_linear`."""

    @property
    def width(self) -> int:
        """Columns of a product as the kernels write it: `out_features` and the panels' rest."""
        return self.panels.shape[0] * LANES

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [num_rows, in_features] -> contiguous [num_rows, out_features]."""
        num_rows = x.shape[0]
        num_panels, k, _ = self.panels.shape
        out = torch.empty(num_rows, self.width)
        if num_rows > 0:
            tiles = np.empty(num_rows * k, np.float32)
            self._pool.run(numba_linear.interleave, tiles.size, x.contiguous().numpy(), k, tiles)
            counter = np.zeros(1, np.int64)
            self._pool.run(
                numba_linear.multiply,
                2 * num_rows * self.panels.size,
                counter.ctypes.data,
                tiles.ctypes.data,
                num_rows,
                self.panels.ctypes.data,
                num_panels,
                k,
                self.is_half,
                out.data_ptr(),
            )
        return out[:, : self.out_features].contiguous()


def _as_array(weight: torch.Tensor) -> numba_packing.Weight:
    """The elements as `numba_packing` wants them."""
    contiguous = weight.contiguous()
    if weight.dtype == torch.bfloat16:
        return contiguous.view(torch.int16).numpy()
    if weight.dtype == torch.float16:
        return contiguous.view(torch.uint16).numpy()
    return contiguous.float().numpy()


def _panels(rows: numba_packing.Weight, dtype: type[_Element]) -> npt.NDArray[_Element]:
    num_outputs, width = rows.shape
    num_panels = max(numba_linear.MIN_PANELS, -(-num_outputs // LANES))
    return huge_pages.zeros((num_panels, -(-width // UNROLL) * UNROLL, LANES), dtype)


def _pack_halves(rows: numba_packing.Weight) -> npt.NDArray[np.uint16] | None:
    """None if float16 does not hold the weight as well as sums need it."""
    panels, norms = _panels(rows, np.uint16), np.empty((1, 2))
    numba_packing.pack_halves(0, 1, rows, panels, norms)
    total, changed = norms[0].tolist()
    # A NaN compares false.
    return panels if changed <= MAX_ROUNDING**2 * total else None


def _pack_floats(rows: numba_packing.Weight) -> npt.NDArray[np.float32]:
    panels = _panels(rows, np.float32)
    numba_packing.pack_floats(0, 1, rows, panels)
    return panels
