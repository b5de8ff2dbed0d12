"""Packs weights for `numba_linear`: from rows, as checkpoints hold them, to panels.

A weight comes as an array whose type says what its elements are: int16 are the bits of bfloat16,
uint16 those of float16, float32 is itself.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic
from qwen3_ray.cpu.numba_tiles import LANES

Weight = npt.NDArray[np.int16] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]
Panels = npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_BFLOAT_BITS = 16  # below those that a bfloat16 has of a float32
_HALF_BYTES = 2
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_SOURCES = {"int16": _I16, "uint16": _HALF, "float32": _FLOAT}
_PANELS = {"uint16": _HALF, "float32": _FLOAT}


@intrinsic(np.float32)
def widen(_context: object, element: types.Type) -> Typed:
    """float32 of one element of a weight."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        if element == types.float32:
            return args[0]
        if element == types.uint16:
            return builder.fpext(builder.bitcast(args[0], _HALF), _FLOAT)
        shifted = builder.shl(builder.zext(args[0], _I32), _I32(_BFLOAT_BITS))
        return builder.bitcast(shifted, _FLOAT)

    return types.float32(element), generate


def _lanes(element: ir.Type) -> ir.Type:
    return ir.VectorType(element, LANES)


@intrinsic(int)
def _pack_rows(
    _context: object,
    weight: types.Array,
    _rows: object,
    _row_bytes: object,
    _width: object,
    panels: types.Array,
    _panel: object,
    _norms: object,
) -> Typed:
    """Eight rows become a panel; types say of what. Addresses in bytes.

    `_pack_rows(weight, address of the first row, from row to row, width, panels, address of the
    panel, address of its two norms)`.
    """

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        _, rows, row_bytes, width, _, panel, norms = args
        source, stored = _SOURCES[str(weight.dtype)], _PANELS[str(panels.dtype)]
        pointers = [
            builder.inttoptr(
                builder.add(rows, builder.mul(row_bytes, _I64(i))), source.as_pointer()
            )
            for i in range(LANES)
        ]
        to = builder.inttoptr(panel, _lanes(stored).as_pointer())
        totals = _emit_loop(builder, pointers, to, width)
        norm_pointer = builder.inttoptr(norms, _DOUBLE.as_pointer())
        for i, total in enumerate(totals):
            lanes = [builder.extract_element(total, _I32(lane)) for lane in range(LANES)]
            builder.store(reduce(builder.fadd, lanes), builder.gep(norm_pointer, [_I64(i)]))
        return _I32(0)

    return types.int32(weight, *[types.intp] * 3, panels, *[types.intp] * 2), generate


def _emit_loop(
    builder: ir.IRBuilder, rows: Sequence[ir.Value], panel: ir.Value, width: ir.Value
) -> list[ir.Value]:
    """Write the loop over the rows' elements; the two sums of squares, eight float64 each."""
    kind = ir.FunctionType(_lanes(_DOUBLE), [_lanes(_DOUBLE)] * 3)
    fma = builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f64", fnty=kind)
    before = builder.block
    loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_I64)
    sums = [builder.phi(_lanes(_DOUBLE)) for _ in range(2)]
    values = ir.Constant(_lanes(rows[0].type.pointee), ir.Undefined)
    for lane, row in enumerate(rows):
        value = builder.load(builder.gep(row, [index]), align=1)  # files align nothing
        values = builder.insert_element(values, value, _I32(lane))
    packed, *parts = _round(builder, values, panel.type.pointee)
    builder.store(packed, builder.gep(panel, [index]), align=_HALF_BYTES)
    totals = [builder.call(fma, [x, x, total]) for x, total in zip(parts, sums, strict=True)]
    following = builder.add(index, _I64(1))
    index.add_incoming(_I64(0), before)
    index.add_incoming(following, loop)
    for phi, total in zip(sums, totals, strict=True):
        phi.add_incoming(ir.Constant(_lanes(_DOUBLE), None), before)
        phi.add_incoming(total, loop)
    builder.cbranch(builder.icmp_signed("<", following, width), loop, end)
    builder.position_at_end(end)
    return totals


def _round(
    builder: ir.IRBuilder, values: ir.Value, stored: ir.Type
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Eight elements as they are stored; in float64, they and what that changes of them.

    Squares of floats may be beyond the range of floats, on either side.
    """
    wide = values
    if values.type == _lanes(_I16):
        shift = ir.Constant(_lanes(_I32), [_BFLOAT_BITS] * LANES)
        bits = builder.shl(builder.zext(values, _lanes(_I32)), shift)
        wide = builder.bitcast(bits, _lanes(_FLOAT))
    elif values.type == _lanes(_HALF):
        wide = builder.fpext(values, _lanes(_FLOAT))
    exact = builder.fpext(wide, _lanes(_DOUBLE))
    if stored == _lanes(_FLOAT):
        return wide, exact, ir.Constant(_lanes(_DOUBLE), None)
    packed = builder.fptrunc(wide, _lanes(_HALF))
    rounded = builder.fpext(builder.fpext(packed, _lanes(_FLOAT)), _lanes(_DOUBLE))
    return packed, exact, builder.fsub(exact, rounded)


@njit(cache=True, nogil=True)
def pack(
    part: int,
    num_parts: int,
    weight: Weight,
    width: int,
    stride: int,
    panels: Panels,
    norms: npt.NDArray[np.float64],
) -> None:
    """Fill `panels` from a weight: with halves, the nearest ones, or floats, as their type says.

    Args:
        part: of `num_parts` parts of the panels.
        num_parts: how many there are.
        weight: flat; row `i`, one of eight for each panel, is `weight[i * stride :][:width]`.
        width: elements of a row, at least 1.
        stride: elements from row to row.
        panels: [num_panels, k, 8], see `numba_linear`; what lies beyond `width` is left as it is.
        norms: [num_panels, 2] gets the squared norms of each panel's weights and of what rounding
            changed of them. The first are finite exactly if all weights are.
    """
    num_panels, row_bytes = panels.shape[0], stride * weight.itemsize
    for panel in range(num_panels * part // num_parts, num_panels * (part + 1) // num_parts):
        _pack_rows(
            weight, weight.ctypes.data + panel * LANES * row_bytes, row_bytes, width,
            panels, panels[panel].ctypes.data, norms[panel].ctypes.data,
        )  # fmt: skip
