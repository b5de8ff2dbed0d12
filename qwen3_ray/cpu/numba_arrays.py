"""Arrays over addresses, for kernels that get tables of them."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]  # its stubs lack carray

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic

_FLOATS = types.CPointer(types.float32)  # type: ignore[no-untyped-call]
_Floats = npt.NDArray[np.float32]


@intrinsic(ctypes.c_void_p)
def _pointer(_context: object, _address: object) -> Typed:
    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return _FLOATS(types.intp), generate


@callee
def floats_at(address: int, size: int) -> _Floats:
    """float32 [size] at `address`; whoever made the address keeps the memory alive."""
    return carray(_pointer(address), (size,), np.float32)


@callee
def address_of(array: npt.NDArray[np.generic]) -> int:
    """Where an array begins, as the signed number that addresses from Python are.

    One type for both: a kernel is compiled for each type that it is called with.
    """
    return int(np.int64(array.ctypes.data))
