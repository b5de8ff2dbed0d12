"""Atomic words and a polite wait, for kernels whose threads or processes talk through memory.

A word is an int64 that lies at an address of its own, a multiple of 8. What a thread wrote before
it stored or added to a word is seen by whoever then loads that value. Not the caller's business:
that the address is mapped; a wrong one ends the process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

from qwen3_ray.cpu.numba_callee import callee

__all__ = ["atomic_add", "atomic_load", "atomic_store", "relax"]

_Values = Sequence[ir.Value]
_Typed = tuple[Signature, Callable[..., ir.Value]]

_NUM_PAUSES = 1_000
"""Some 50 us; a peer that computes elsewhere is done by then, one without a core is not."""
_YIELD = 1  # among the hints of aarch64
_ALIGNMENT = 8


def _word(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def atomic_load(_context: object, _address: object) -> _Typed:
    """`atomic_load(address) -> value`, which all that was written before its store comes with."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: _Values
    ) -> ir.Value:
        return builder.load_atomic(_word(builder, args[0]), "acquire", _ALIGNMENT)

    return types.int64(types.intp), generate


@intrinsic
def atomic_store(_context: object, _address: object, _value: object) -> _Typed:
    """`atomic_store(address, value) -> 0`, after all that this thread wrote before."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: _Values
    ) -> ir.Value:
        builder.store_atomic(args[1], _word(builder, args[0]), "release", _ALIGNMENT)
        return ir.IntType(32)(0)

    return types.int32(types.intp, types.int64), generate


@intrinsic
def atomic_add(_context: object, _address: object, _value: object) -> _Typed:
    """`atomic_add(address, value) -> value before`; nobody comes between."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: _Values
    ) -> ir.Value:
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.intp, types.int64), generate


@intrinsic
def _pause(_context: object) -> _Typed:
    """Tell the core that this is a waiting loop."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, _args: _Values
    ) -> ir.Value:
        number = ir.IntType(32)
        if platform.machine() == "x86_64":
            _call(builder, "llvm.x86.sse2.pause")
        elif platform.machine() == "aarch64":
            _call(builder, "llvm.aarch64.hint", number(_YIELD))
        return number(0)

    return types.int32(), generate


def _call(builder: ir.IRBuilder, name: str, *args: ir.Value) -> None:
    function_type = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(builder.module.declare_intrinsic(name, fnty=function_type), args)


_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@callee
def relax(spins: int) -> None:
    """Wait a moment in a loop that has gone round `spins` times: keep the core, later offer it."""
    if spins < _NUM_PAUSES:
        _pause()  # type: ignore[call-arg]  # Numba gives the context
    else:
        _sched_yield()
