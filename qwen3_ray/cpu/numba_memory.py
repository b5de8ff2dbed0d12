"""Storing numbers at addresses, in the width that memory holds them in."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic

LARGEST_HALF = np.float32(65504)

_I32 = ir.IntType(32)
_SIGNATURE = types.int32(types.intp, types.float32)


@intrinsic(int)
def store_float(_context: object, _address: object, _value: object) -> Typed:
    """`store_float(address, value) -> 0`; the address is a multiple of 4."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        address, value = args
        builder.store(value, builder.inttoptr(address, ir.FloatType().as_pointer()))
        return _I32(0)

    return _SIGNATURE, generate


@intrinsic(int)
def _store_rounded(_context: object, _address: object, _value: object) -> Typed:
    """`_store_rounded(address, value) -> 0`: to the nearest half, ties to even."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        address, value = args
        half = builder.fptrunc(value, ir.HalfType())
        builder.store(half, builder.inttoptr(address, ir.HalfType().as_pointer()))
        return _I32(0)

    return _SIGNATURE, generate


@callee
def store_half(address: int, value: np.float32) -> None:
    """The nearest half, ties to even, the largest one for what is beyond it; NaN stays NaN.

    `address` is a multiple of 2.
    """
    if value > LARGEST_HALF:
        value = LARGEST_HALF
    elif value < -LARGEST_HALF:
        value = -LARGEST_HALF
    _store_rounded(address, value)
