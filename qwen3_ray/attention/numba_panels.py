"""A few rows times the panels of one head of a block: keys or values, of floats or of halves."""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from collections.abc import Callable

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_tiles import LANES, Stored, make_tile

HALF_BYTES = 2
_FLOAT_BYTES = 4

_Multiply = Callable[[int, int, int, int, int, int, int, int, int, int, int], None]


def _make_multiply(stored: Stored) -> _Multiply:
    """One tile of `height` rows and `width` panels; the other arguments are those of a `Tile`."""
    # Any number of keys may be added up: nothing is unrolled here, LLVM does so itself.
    tile_2x4 = make_tile(2, 4, stored, unroll=1, interleaved=False, prefetch=True)
    tile_2x2 = make_tile(2, 2, stored, unroll=1, interleaved=False, prefetch=True)
    tile_4x2 = make_tile(4, 2, stored, unroll=1, interleaved=False, prefetch=True)
    tile_6x2 = make_tile(6, 2, stored, unroll=1, interleaved=False, prefetch=True)
    plain_6x2 = make_tile(6, 2, stored, unroll=1, interleaved=False)

    def multiply(
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
        ahead: int,
    ) -> None:
        # Only of the tallest, which is nearly all of a prompt, there is one that fetches nothing.
        args = (rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride, ahead or at)
        if height == 6 and ahead == 0:
            plain_6x2(*args)
        elif height == 6:
            tile_6x2(*args)
        elif height == 4:
            tile_4x2(*args)
        elif width == 4:
            tile_2x4(*args)
        else:
            tile_2x2(*args)

    return callee(multiply, variant=stored)


_halves, _floats = _make_multiply("half"), _make_multiply("float")


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
    ahead: int,
) -> None:
    """`height` rows times an even number of panels, each [panel_rows, 8] of which `k` are used.

    As much as is read is fetched from `ahead` on; nothing that is not here already if it is 0.
    """
    panel_bytes = panel_rows * LANES * element_bytes
    panel = 0
    while panel < num_panels:
        at, to = panels + panel * panel_bytes, out + panel * LANES * _FLOAT_BYTES
        width = 4 if height == 2 and num_panels - panel >= 4 else 2
        args = (rows, at, panel_bytes, k, to, out_stride, accumulate, row_stride, ahead)
        if element_bytes == HALF_BYTES:
            _halves(height, width, *args)
        else:
            _floats(height, width, *args)
        if ahead > 0:
            ahead += width * k * LANES * element_bytes
        panel += width
