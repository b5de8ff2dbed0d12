"""The inner loop of all products on CPU: a few rows times a few panels of eight columns.

Each output is one chain of fused multiply-adds over k in ascending order, so its bits depend on
its own row and column alone: not on the tile's shape, nor on how a sum is cut into calls that
accumulate. FBGEMM's fp16 kernels compute in the same order.

A panel is eight columns of the right-hand matrix, stored [k, 8]; panels of one tile lie
`panel_bytes` apart. The left-hand rows come interleaved, [k, num_rows]: rows that lie a power of
two apart would fall into the same cache sets. Short rows that follow each other need not be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from llvmlite import ir
from numba import types

from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic

LANES = 8
"""Columns of a panel."""
UNROLL = 4
"""Steps of k in one turn of an unrolled loop; `k` of such a tile is a multiple of it."""

Tile = Callable[[int, int, int, int, int, int, int, int, int], int]
Stored = Literal["half", "float", "byte"]

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTE_POINTER = ir.IntType(8).as_pointer()
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_I32, LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_STORED = {"half": _HALVES, "float": _FLOATS, "byte": _BYTES}
_ELEMENT_BYTES = {"half": 2, "float": 4, "byte": 1}
_FLOAT_BYTES, _LINE_BYTES = 4, 64
_SIGNATURE = types.int32(*[types.intp] * 9)


def make_tile(
    num_rows: int,
    num_panels: int,
    stored: Stored,
    *,
    unroll: int = UNROLL,
    prefetch: bool = False,
    interleaved: bool = True,
) -> Tile:
    """A function for Numba kernels: `out += rows @ panels` for one tile; all addresses in bytes.

    Its arguments: address of the rows, float32 [k, num_rows]; address of the first panel, of
    `stored` elements; bytes from panel to panel; k, a multiple of `unroll` and not 0; address of
    the output, float32; elements from one output row to the next; whether (1 or 0) to add to what
    the output holds; elements from row to row, if they are not `interleaved` but [num_rows, k];
    and, if `prefetch`, the address of what to have in the cache next. Of that come as many bytes
    as one panel of halves has, or as many as the tile reads if its rows are not interleaved.
    Nothing needs to be aligned. Stored bytes are integers with a sign.
    """

    @intrinsic(int)
    def tile(
        _context: object,
        _rows: object,
        _panels: object,
        _panel_bytes: object,
        _k: object,
        _out: object,
        _out_stride: object,
        _accumulate: object,
        _row_stride: object,
        _ahead: object,
    ) -> Typed:
        def generate(
            _context: object, builder: ir.IRBuilder, _signature: object, args: Values
        ) -> ir.Value:
            emitter = _TileEmitter(builder, num_rows, num_panels, stored, interleaved)
            emitter.emit(args, unroll, prefetch)
            return ir.IntType(32)(0)

        return _SIGNATURE, generate

    return tile


class _TileEmitter:
    """Writes the loop into the function that is being built."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        num_rows: int,
        num_panels: int,
        stored: Stored,
        interleaved: bool,
    ) -> None:
        self._builder = builder
        self._num_rows = num_rows
        self._num_panels = num_panels
        self._interleaved = interleaved
        self._panel_type = _STORED[stored]
        own_bytes = num_panels * LANES * _ELEMENT_BYTES[stored]
        self._fetched_bytes = LANES * _ELEMENT_BYTES["half"] if interleaved else own_bytes
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        self._fma = builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", fnty=kind)

    def emit(self, args: Values, unroll: int, prefetch: bool) -> None:
        rows, panels, panel_bytes, k, out, out_stride, accumulate, row_stride, ahead = args
        builder = self._builder
        row_pointer = builder.inttoptr(rows, _FLOAT.as_pointer())
        distance = _int(1) if self._interleaved else row_stride
        row_pointers = [
            builder.gep(row_pointer, [builder.mul(distance, _int(row))])
            for row in range(self._num_rows)
        ]
        panel_pointers = [
            builder.inttoptr(self._offset(panels, panel_bytes, p), self._panel_type.as_pointer())
            for p in range(self._num_panels)
        ]
        row_bytes = builder.mul(out_stride, _int(_FLOAT_BYTES))
        outputs = [
            builder.inttoptr(
                builder.add(self._offset(out, row_bytes, row), _int(_FLOAT_BYTES * LANES * p)),
                _FLOATS.as_pointer(),
            )
            for row in range(self._num_rows)
            for p in range(self._num_panels)
        ]
        before = builder.block
        add, loop, end = (builder.append_basic_block(name) for name in ("add", "loop", "end"))
        builder.cbranch(builder.icmp_signed("!=", accumulate, _int(0)), add, loop)
        builder.position_at_end(add)
        held = [builder.load(output, align=_FLOAT_BYTES) for output in outputs]
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(_I64)
        sums = [builder.phi(_FLOATS) for _ in outputs]
        for origin, values in ((before, [ir.Constant(_FLOATS, None)] * len(sums)), (add, held)):
            index.add_incoming(_int(0), origin)
            for total, value in zip(sums, values, strict=True):
                total.add_incoming(value, origin)
        totals: list[ir.Value] = list(sums)
        for step in range(unroll):
            at = builder.add(index, _int(step))
            if prefetch:
                self._fetch(ahead, at, step)
            totals = self._multiply_add(row_pointers, panel_pointers, at, totals)
        following = builder.add(index, _int(unroll))
        index.add_incoming(following, builder.block)
        for total, value in zip(sums, totals, strict=True):
            total.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, k), loop, end)
        builder.position_at_end(end)
        for value, output in zip(totals, outputs, strict=True):
            builder.store(value, output, align=_FLOAT_BYTES)

    def _multiply_add(
        self,
        row_pointers: list[ir.Value],
        panel_pointers: list[ir.Value],
        at: ir.Value,
        totals: list[ir.Value],
    ) -> list[ir.Value]:
        """One step of k: every row times every panel."""
        builder = self._builder
        columns = [self._load_panel(pointer, at) for pointer in panel_pointers]
        place = builder.mul(at, _int(self._num_rows if self._interleaved else 1))
        results: list[ir.Value] = []
        for row_pointer in row_pointers:
            address = builder.gep(row_pointer, [place])
            value = self._broadcast(builder.load(address, align=_FLOAT_BYTES))
            for column in columns:
                total = totals[len(results)]
                results.append(builder.call(self._fma, [value, column, total]))
        return results

    def _load_panel(self, pointer: ir.Value, at: ir.Value) -> ir.Value:
        align = 1 if self._panel_type is _BYTES else 2
        loaded = self._builder.load(self._builder.gep(pointer, [at]), align=align)
        if self._panel_type is _BYTES:
            return self._builder.sitofp(self._builder.sext(loaded, _INTS), _FLOATS)
        if self._panel_type is _FLOATS:
            return loaded
        return self._builder.fpext(loaded, _FLOATS)

    def _broadcast(self, value: ir.Value) -> ir.Value:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        single = self._builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        lanes = ir.Constant(ir.VectorType(_I32, LANES), None)
        return self._builder.shuffle_vector(single, undefined, lanes)

    def _fetch(self, ahead: ir.Value, at: ir.Value, step: int) -> None:
        """Ask for the lines of this step's share at `ahead` that no step of this turn asked for."""
        share = self._fetched_bytes
        if step * share % _LINE_BYTES >= share:
            return
        first = self._offset(ahead, at, share)
        for byte in range(0, share, _LINE_BYTES):
            pointer = self._builder.inttoptr(self._builder.add(first, _int(byte)), _BYTE_POINTER)
            self._prefetch(pointer)

    def _prefetch(self, pointer: ir.Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _I32, _I32, _I32])
        function = self._builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        # To read, into the nearest cache, as data.
        flags = [ir.Constant(_I32, flag) for flag in (0, 3, 1)]
        self._builder.call(function, [pointer, *flags])

    def _offset(self, base: ir.Value, stride: ir.Value, count: int) -> ir.Value:
        return self._builder.add(base, self._builder.mul(stride, _int(count)))


def _int(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)
