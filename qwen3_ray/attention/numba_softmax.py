"""Softmax of one row's scores against one block, by vectors of eight.

Written as instructions because their order makes the bits, which Numba's `fastmath` may change, and
because LLVM does not turn a maximum into vectors that must leave room for NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types

from qwen3_ray.cpu.numba_intrinsic import Typed, Values, intrinsic
from qwen3_ray.cpu.numba_tiles import LANES

SLOTS = 2 * LANES
"""Scores are looked at so many at a time."""
LOWEST = np.float32(-3e38)
"""A maximum of nothing; infinities would differ by NaN."""

_I32, _I64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)
_FLOAT_BYTES = 4
_MAGIC = 12582912.0  # 1.5 * 2**23: x + _MAGIC holds round(x) in its low bits
_MANTISSA_BITS = 23
_EXP2_MIN = -126.0
_EXP2_COEFFICIENTS = (
    1.540353039338161e-4, 1.333355814642844e-3, 9.618129107628477e-3, 5.550410866482158e-2,
    2.402265069591007e-1, 6.931471805599453e-1, 1.0,
)  # fmt: skip

_Step = Callable[[ir.Value, ir.Value, ir.Value, ir.Value], ir.Value]
_Join = Callable[[ir.Value, ir.Value], ir.Value]


@intrinsic(np.float32)
def maximum_of(
    _context: object, _scores: object, _num_slots: object, _num_keys: object, _maximum: object
) -> Typed:
    """`maximum_of(scores, num_slots, num_keys, maximum)`: the largest of `maximum` and the scores.

    `scores` is the address of float32 [num_slots], a multiple of `SLOTS`; those from `num_keys` on
    may hold anything, and NaN is passed over.
    """

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        *row, maximum = args

        def step(
            score: ir.Value, is_key: ir.Value, _place: ir.Value, largest: ir.Value
        ) -> ir.Value:
            return _max(builder, builder.select(is_key, score, _all(float(LOWEST))), largest)

        start = _splat(builder, maximum, _FLOATS)
        totals = _for_slots(builder, row, start, step)
        return _fold(builder, totals, functools.partial(_max, builder))

    return types.float32(types.intp, types.intp, types.intp, types.float32), generate


@intrinsic(np.float32)
def weigh(
    _context: object, _scores: object, _num_slots: object, _num_keys: object, _maximum: object,
    _scale: object,
) -> Typed:  # fmt: skip
    """`weigh(scores, num_slots, num_keys, maximum, scale)`: weights in place of scores; their sum.

    A weight is `2 ** ((score - maximum) * scale)`, and 0 from `num_keys` on. The sum is made in
    one order whatever `num_keys` is.
    """

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        *row, maximum, scale = args
        top, factor = _splat(builder, maximum, _FLOATS), _splat(builder, scale, _FLOATS)

        def step(score: ir.Value, is_key: ir.Value, place: ir.Value, total: ir.Value) -> ir.Value:
            power = _exp2(builder, builder.fmul(builder.fsub(score, top), factor))
            weight = builder.select(is_key, power, _all(0))
            builder.store(weight, place, align=_FLOAT_BYTES)
            return builder.fadd(total, weight)

        totals = _for_slots(builder, row, _all(0), step)
        return _fold(builder, totals, builder.fadd)

    operands = (types.intp, types.intp, types.intp, types.float32, types.float32)
    return types.float32(*operands), generate


@intrinsic(np.float32)
def exp2(_context: object, _x: object) -> Typed:
    """`exp2(x)` for x <= 0: at least 2**-126, with the bits that weights have."""

    def generate(
        _context: object, builder: ir.IRBuilder, _signature: object, args: Values
    ) -> ir.Value:
        power = _exp2(builder, _splat(builder, args[0], _FLOATS))
        return builder.extract_element(power, ir.Constant(_I32, 0))

    return types.float32(types.float32), generate


def _for_slots(builder: ir.IRBuilder, row: Values, start: ir.Value, step: _Step) -> list[ir.Value]:
    """Loop over vectors of a `row`: `step(score, is_key, place, total)` gives the next total.

    A row is the address of its scores, num_slots and num_keys.

    Neighbouring vectors have totals of their own, so that they need not wait for each other.
    """
    scores, num_slots, num_keys = row
    pointer = builder.inttoptr(scores, _FLOATS.as_pointer())
    before = builder.block
    loop, end = (builder.append_basic_block(name) for name in ("loop", "end"))
    builder.branch(loop)
    builder.position_at_end(loop)
    first = builder.phi(_I64)
    first.add_incoming(ir.Constant(_I64, 0), before)
    totals = [builder.phi(_FLOATS) for _ in range(SLOTS // LANES)]
    num_left = _splat(builder, builder.trunc(builder.sub(num_keys, first), _I32), _INTS)
    place = builder.gep(pointer, [builder.sdiv(first, ir.Constant(_I64, LANES))])
    results = []
    for index, total in enumerate(totals):
        total.add_incoming(start, before)
        vector = builder.gep(place, [ir.Constant(_I64, index)])
        slots = ir.Constant(_INTS, [index * LANES + lane for lane in range(LANES)])
        is_key = builder.icmp_signed(">", num_left, slots)
        score = builder.load(vector, align=_FLOAT_BYTES)
        results.append(step(score, is_key, vector, total))
    for total, result in zip(totals, results, strict=True):
        total.add_incoming(result, builder.block)
    following = builder.add(first, ir.Constant(_I64, SLOTS))
    first.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, num_slots), loop, end)
    builder.position_at_end(end)
    return results


def _fold(builder: ir.IRBuilder, totals: list[ir.Value], join: _Join) -> ir.Value:
    """One number of all lanes of all totals."""
    total = functools.reduce(join, totals)
    distance = LANES // 2
    while distance > 0:
        lanes = ir.Constant(_INTS, [(lane + distance) % LANES for lane in range(LANES)])
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        total = join(total, builder.shuffle_vector(total, undefined, lanes))
        distance //= 2
    return builder.extract_element(total, ir.Constant(_I32, 0))


def _exp2(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    fma = builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", fnty=kind)
    clipped = _max(builder, x, _all(_EXP2_MIN))
    shifted = builder.fadd(clipped, _all(_MAGIC))
    fraction = builder.fsub(clipped, builder.fsub(shifted, _all(_MAGIC)))
    power: ir.Value = _all(_EXP2_COEFFICIENTS[0])
    for coefficient in _EXP2_COEFFICIENTS[1:]:
        power = builder.call(fma, [power, fraction, _all(coefficient)])
    bits = ir.Constant(_INTS, [_MANTISSA_BITS] * LANES)
    exponent = builder.shl(builder.bitcast(shifted, _INTS), bits)
    return builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), _FLOATS)


def _max(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The larger of each lane; y's where x is NaN."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _splat(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_INTS, None))


def _all(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [float(np.float32(value))] * LANES)
