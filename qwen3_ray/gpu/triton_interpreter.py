"""Makes Triton's interpreter round, multiply tiles and count, as GPUs do, and less slow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_NAN = 0x7FC0


def round_to_nearest() -> None:
    """From now on casts of float32 to bfloat16 or float8e4nv round to the nearest, ties to even.

    The interpreter of Triton 3.6 cuts the last sixteen bits off instead: twice the error, and a
    bias, with which no comparison with torch in bfloat16 would hold. To float8e4nv it loses more.
    """
    cut_off, convert = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def cast_impl(self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cut_off(self, src, dst_type)
        return TensorHandle(_bfloat16_bits(src.data), tl.bfloat16)

    def create_fp_to_fp(
        self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype, rounding_mode: object
    ) -> TensorHandle:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.float8e4nv):
            return convert(self, src, dst_type, rounding_mode)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.float8_e4m3fn)
        return TensorHandle(rounded.view(torch.uint8).numpy(), tl.float8e4nv)

    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp


def multiply_row_by_row() -> None:
    """`tl.dot` gives a row the same bits wherever in a tile it lies, and whatever the tile's size.

    The interpreter of Triton 3.6 gives the tile to a BLAS library in float32, which orders its sums
    by row numbers and sizes; and bfloat16, which it keeps as integers, it multiplies as such. In
    float64 all but the rarest of sums round to one float32 in any order.
    """

    def create_dot(
        _self: InterpreterBuilder,
        a: TensorHandle,
        b: TensorHandle,
        d: TensorHandle,
        _input_precision: object,
        _max_num_imprecise_acc: object,
    ) -> TensorHandle:
        product = np.matmul(_doubles(a), _doubles(b)).astype(d.data.dtype)
        return TensorHandle(product + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


def count_by_tensors() -> None:
    """`range` takes numbers that a kernel was given, loaded or computed.

    The interpreter of Triton 3.6 keeps them as arrays of one element, which NumPy since 2.4 does
    not take for numbers.
    """
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: type[tl.tensor], scope: interpreter._LangPatchScope) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def prepare_once() -> None:
    """Functions that a kernel calls do not replace Triton's language anew at each call.

    The interpreter of Triton 3.6 does, although it is replaced as long as the kernel runs; this
    takes longer than what most of them compute.
    """
    run_grid, seen = interpreter.GridExecutor.__call__, set[int]()

    def call_grid(self: interpreter.GridExecutor, *args: object, **kwargs: object) -> None:
        seen.clear()
        run_grid(self, *args, **kwargs)

    def call(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
        if id(self.fn.__globals__) not in seen:
            seen.add(id(self.fn.__globals__))
            interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.GridExecutor.__call__ = call_grid
    interpreter.InterpretedFunction.__call__ = call


def name_tuples_late() -> None:
    """Types of tuples are named when the name is asked for; a fifth of the time went into names."""

    def init(
        self: tl.tuple_type, types: Sequence[object], fields: Sequence[str] | None = None
    ) -> None:
        self.types, self.fields = types, fields or [""] * len(types)

    def name(self: tl.tuple_type) -> str:
        pairs = zip(self.fields, self.types, strict=True)
        return f"[{','.join(f'{field}:{kind}' for field, kind in pairs)}]"

    tl.tuple_type.__init__ = init
    tl.tuple_type.name = property(name)


def _doubles(tile: TensorHandle) -> npt.NDArray[np.float64]:
    values = tile.data
    if tile.dtype.scalar == tl.bfloat16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif tile.dtype.scalar == tl.float8e4nv:
        values = torch.from_numpy(values).view(torch.float8_e4m3fn).float().numpy()
    return np.asarray(values, np.float64)


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), _NAN, nearest).astype(np.uint16)
