"""Quantises weights for `numba_linear`: panels of signed bytes and a scale for each output."""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic
from qwen3_ray.cpu.numba_tiles import LANES
from qwen3_ray.layers.numba_packing import Weight, widen

LARGEST = 127
"""Bytes are from -127 to 127: a scale serves both signs alike."""
_SMALLEST_SCALE = np.float32(2.0**-126)  # below it floats lose digits
_MAGNITUDE = 0x7FFFFFFF
_INFINITY = np.int32(0x7F800000)


@intrinsic(np.int32)
def _magnitude(_context: object, _value: object) -> Typed:
    """Bits of a float32 less its sign: they order as the magnitudes do, and NaN comes last."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        bits = builder.bitcast(args[0], ir.IntType(32))
        return builder.and_(bits, ir.Constant(ir.IntType(32), _MAGNITUDE))

    return types.int32(types.float32), generate


@intrinsic(np.float32)
def _value(_context: object, _bits: object) -> Typed:
    """The float32 that has these bits."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(cache=True, nogil=True, error_model="numpy")
def quantize(
    part: int,
    num_parts: int,
    weight: Weight,
    width: int,
    stride: int,
    panels: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
) -> None:
    """Fill `panels` from a weight: each is a byte times its output's scale, off by half of that.

    The scale is the largest magnitude of an output's weights over 127; NaN if one of these is not
    finite; 0, like the bytes, if there is none or it would be less than the least normal float.

    Args:
        part: of `num_parts` parts of the panels.
        num_parts: how many there are.
        weight: flat; row `i`, one of eight for each panel, is `weight[i * stride :][:width]`.
        width: elements of a row, at least 1.
        stride: elements from row to row.
        panels: [num_panels, k, 8], see `numba_linear`; what lies beyond `width` is left as it is.
        scales: [num_panels, 8], of the outputs.
    """
    num_panels = panels.shape[0]
    for panel in range(num_panels * part // num_parts, num_panels * (part + 1) // num_parts):
        to = panels[panel]
        for lane in range(LANES):
            first = (panel * LANES + lane) * stride
            row = weight[first : first + width]
            largest = np.int32(0)
            for i in range(width):
                largest = max(largest, _magnitude(widen(row[i])))
            scale = _value(largest) / np.float32(LARGEST)
            if largest >= _INFINITY:
                scales[panel, lane] = np.nan
            elif scale >= _SMALLEST_SCALE:
                scales[panel, lane] = scale
                for i in range(width):
                    to[i, lane] = np.int8(np.rint(widen(row[i]) / scale))
            else:
                scales[panel, lane] = 0
                to[:width, lane] = 0
