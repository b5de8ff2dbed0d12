"""Atomic words and ways to wait, for kernels whose threads or processes talk through memory.

A word is an int64 that lies at an address of its own, a multiple of 8. All threads see all
operations on words in one order, and whoever loads a value also sees what its writer wrote before.
Not the caller's business: that the address is mapped; a wrong one ends the process.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

from llvmlite import ir
from numba import types

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic

__all__ = ["CAN_SLEEP", "atomic_add", "atomic_load", "atomic_store", "relax", "sleep", "wake"]

_NUM_PAUSES = 1_000
"""Some 50 us; a peer that computes elsewhere is done by then, one without a core is not."""
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), -1)
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY = 2**31 - 1
CAN_SLEEP = platform.system() == "Linux" and _FUTEX >= 0 and sys.byteorder == "little"
"""Whether `sleep` and `wake` work on this machine."""
_YIELD = 1  # among the hints of aarch64
_ALIGNMENT = 8


def _word(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic(int)
def atomic_load(_context: object, _address: object) -> Typed:
    """`atomic_load(address) -> value`."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        return builder.load_atomic(_word(builder, args[0]), "seq_cst", _ALIGNMENT)

    return types.int64(types.intp), generate


@intrinsic(int)
def atomic_store(_context: object, _address: object, _value: object) -> Typed:
    """`atomic_store(address, value) -> 0`."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        builder.store_atomic(args[1], _word(builder, args[0]), "seq_cst", _ALIGNMENT)
        return ir.IntType(32)(0)

    return types.int32(types.intp, types.int64), generate


@intrinsic(int)
def atomic_add(_context: object, _address: object, _value: object) -> Typed:
    """`atomic_add(address, value) -> value before`; nobody comes between."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.intp, types.int64), generate


@intrinsic(int)
def _pause(_context: object) -> Typed:
    """Tell the core that this is a waiting loop."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, _args: Values
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
_futex: Callable[[int, int, int, int, int], int] = types.ExternalFunction(  # type: ignore[assignment]
    "syscall", types.int64(types.int64, types.intp, types.int64, types.int64, types.intp)
)


@callee
def relax(spins: int) -> None:
    """Wait a moment in a loop that has gone round `spins` times: keep the core, later offer it."""
    if spins < _NUM_PAUSES:
        _pause()
    else:
        _sched_yield()


@callee
def sleep(address: int, seen: int, limit_address: int) -> None:
    """Sleep until `wake(address)`, unless the word's low half is no longer that of `seen`.

    May return early; returns after the time at `limit_address` at the latest: two words, seconds
    and nanoseconds. Works between processes that map the same page, at whatever address.
    """
    _futex(_FUTEX, address, _FUTEX_WAIT, seen & 0xFFFFFFFF, limit_address)


@callee
def wake(address: int) -> None:
    """End the sleep of all who sleep at the word."""
    _futex(_FUTEX, address, _FUTEX_WAKE, _EVERYBODY, 0)
