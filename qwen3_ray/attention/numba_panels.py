"""A few rows times the panels of one head of a block: keys or values, of floats or of halves."""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_tiles import LANES, make_tile

HALF_BYTES = 2
_FLOAT_BYTES = 4

# Any number of keys may be added up: nothing is unrolled here, LLVM does so itself.
_floats_2x4 = make_tile(2, 4, "float", unroll=1, interleaved=False)
_floats_2x2 = make_tile(2, 2, "float", unroll=1, interleaved=False)
_floats_4x2 = make_tile(4, 2, "float", unroll=1, interleaved=False)
_floats_6x2 = make_tile(6, 2, "float", unroll=1, interleaved=False)
_halves_2x4 = make_tile(2, 4, "half", unroll=1, interleaved=False)
_halves_2x2 = make_tile(2, 2, "half", unroll=1, interleaved=False)
_halves_4x2 = make_tile(4, 2, "half", unroll=1, interleaved=False)
_halves_6x2 = make_tile(6, 2, "half", unroll=1, interleaved=False)


@callee
def multiply_panels(
    height: int,
    rows: int,
    row_stride: int,
    panels: int,
    element_bytes: int,
    panel_rows: int,
    k: int,
    num_panels: int,
    out: int,
    out_stride: int,
    accumulate: int,
) -> None:
    """`height` rows times an even number of panels, each [panel_rows, 8] of which `k` are used."""
    panel_bytes = panel_rows * LANES * element_bytes
    panel = 0
    while panel < num_panels:
        at, to = panels + panel * panel_bytes, out + panel * LANES * _FLOAT_BYTES
        width = 4 if height == 2 and num_panels - panel >= 4 else 2
        if element_bytes == HALF_BYTES:
            _halves(height, width, rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
        else:
            _floats(height, width, rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
        panel += width


@callee
def _halves(
    height: int,
    width: int,
    rows: int,
    at: int,
    panel_bytes: int,
    k: int,
    to: int,
    out_stride: int,
    accumulate: int,
    row_stride: int,
) -> None:
    if height == 6:
        _halves_6x2(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
    elif height == 4:
        _halves_4x2(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
    elif width == 4:
        _halves_2x4(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
    else:
        _halves_2x2(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)


@callee
def _floats(
    height: int,
    width: int,
    rows: int,
    at: int,
    panel_bytes: int,
    k: int,
    to: int,
    out_stride: int,
    accumulate: int,
    row_stride: int,
) -> None:
    if height == 6:
        _floats_6x2(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
    elif height == 4:
        _floats_4x2(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
    elif width == 4:
        _floats_2x4(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
    else:
        _floats_2x2(rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride)
