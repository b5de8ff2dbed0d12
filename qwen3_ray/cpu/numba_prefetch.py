"""Having memory in the cache before a kernel reads it.

The hardware fetches ahead by itself, but not across the border of a page.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic

_LINE_BYTES = 64
_INT = ir.IntType(32)
_FOR_READING, _NEAREST, _DATA = _INT(0), _INT(3), _INT(1)


@intrinsic(int)
def _prefetch_line(_context: object, _address: object) -> Typed:
    """`_prefetch_line(address) -> 0`."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        address = builder.inttoptr(args[0], pointer)
        builder.call(function, [address, _FOR_READING, _NEAREST, _DATA])
        return _INT(0)

    return types.int32(types.intp), generate


@callee
def prefetch(address: int, num_bytes: int) -> None:
    """Ask for memory that will be read soon. Any address will do, mapped or not."""
    for offset in range(0, num_bytes, _LINE_BYTES):
        _prefetch_line(address + offset)
