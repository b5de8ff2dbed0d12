"""Packs weights for `numba_linear`: from rows, as checkpoints hold them, to panels.

A weight comes as an array whose type says what its elements are: int16 are the bits of bfloat16,
uint16 those of float16, float32 is itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic
from qwen3_ray.cpu.numba_tiles import LANES

Weight = npt.NDArray[np.int16] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_BFLOAT_BITS = 16  # below those that a bfloat16 has of a float32


@intrinsic(np.float32)
def _widen(_context: object, element: types.Type) -> Typed:
    """float32 of one element of a weight."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        if element == types.float32:
            return args[0]
        if element == types.uint16:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        wide = builder.zext(args[0], ir.IntType(32))
        shifted = builder.shl(wide, ir.Constant(ir.IntType(32), _BFLOAT_BITS))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(element), generate


@intrinsic(np.uint16)
def _to_half(_context: object, _value: object) -> Typed:
    """Bits of the float16 nearest to a float32; infinity beyond its range."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@callee
def _panels_of(num_panels: int, part: int, num_parts: int) -> tuple[int, int]:
    return num_panels * part // num_parts, num_panels * (part + 1) // num_parts


@njit(cache=True, nogil=True)
def pack_halves(
    part: int,
    num_parts: int,
    weight: Weight,
    panels: npt.NDArray[np.uint16],
    norms: npt.NDArray[np.float64],
) -> None:
    """Fill `panels` [num_panels, k, 8] from `weight` [out_features, in_features].

    `norms` [num_parts, 2] gets the squared norms of the weight and of what rounding changed; they
    are infinite or NaN if an element is, or is beyond float16. All of `panels` is written.
    """
    num_outputs, width = weight.shape
    start, stop = _panels_of(panels.shape[0], part, num_parts)
    total = changed = 0.0
    for panel in range(start, stop):
        to, first = panels[panel], panel * LANES
        for lane in range(LANES):
            if first + lane < num_outputs:
                for i in range(width):
                    value = _widen(weight[first + lane, i])
                    bits = _to_half(value)
                    # Squares of floats may be beyond the range of floats, on either side.
                    wide = np.float64(value)
                    difference = wide - np.float64(_widen(bits))
                    total += wide * wide
                    changed += difference * difference
                    to[i, lane] = bits
                to[width:, lane] = 0
            else:
                to[:, lane] = 0
    norms[part, 0], norms[part, 1] = total, changed


@njit(cache=True, nogil=True)
def pack_floats(part: int, num_parts: int, weight: Weight, panels: npt.NDArray[np.float32]) -> None:
    """As `pack_halves`, with nothing rounded."""
    num_outputs, width = weight.shape
    start, stop = _panels_of(panels.shape[0], part, num_parts)
    for panel in range(start, stop):
        to, first = panels[panel], panel * LANES
        to[:] = 0
        for lane in range(min(LANES, num_outputs - first)):
            for i in range(width):
                to[i, lane] = _widen(weight[first + lane, i])
