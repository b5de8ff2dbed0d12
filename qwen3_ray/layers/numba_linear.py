"""Products with packed weights on CPU: `x @ W.T`, equal bits for a row whatever its batch.

W [out_features, in_features] lies in panels of eight outputs, [num_panels, k, 8], of halves or
floats, or of bytes with a scale for each output, which its finished sums are multiplied by; the
last panel and the end of k are filled with zeros. Rows of x are interleaved in tiles,
`numba_tiles` multiplies tiles by groups of panels, and threads take groups from a counter as they
come to them. A panel is read once from memory for all rows; while it is used, the next is fetched.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_arrays import floats_at
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_sync import atomic_add
from qwen3_ray.cpu.numba_tiles import LANES, Stored, make_tile

_Floats = npt.NDArray[np.float32]

MIN_PANELS = 4
"""Widest group: a narrower matrix is filled up with empty panels."""
_FLOAT_BYTES, _HALF_BYTES = 4, 2
_CHUNKS_PER_THREAD = 8
_BLOCK_K = 3072  # longest part of a sum whose panels and rows stay in the cache
_BLOCK_BYTES = 1 << 20  # of rows that stay in the cache while all panels pass

_Multiply = Callable[[int, int, int, int, int, int, int, int, int, int], None]


def _make_multiply(stored: Stored, *, prefetch: bool = False) -> _Multiply:
    """A function that multiplies a tile of `height` rows by `group` panels of `stored` elements.

    Its other arguments are those of `numba_tiles`.
    """
    by_1x4, by_2x4 = (make_tile(rows, 4, stored, prefetch=prefetch) for rows in (1, 2))
    by_3x3, by_4x3 = (make_tile(rows, 3, stored, prefetch=prefetch) for rows in (3, 4))
    by_4x2, by_5x2, by_6x2 = (make_tile(rows, 2, stored, prefetch=prefetch) for rows in (4, 5, 6))

    def multiply_tile(
        group: int,
        height: int,
        a: int,
        b: int,
        bytes_: int,
        k: int,
        c: int,
        stride: int,
        acc: int,
        ahead: int,
    ) -> None:
        if group == 4:
            if height == 1:
                by_1x4(a, b, bytes_, k, c, stride, acc, 0, ahead)
            else:
                by_2x4(a, b, bytes_, k, c, stride, acc, 0, ahead)
        elif group == 3:
            if height == 3:
                by_3x3(a, b, bytes_, k, c, stride, acc, 0, ahead)
            else:
                by_4x3(a, b, bytes_, k, c, stride, acc, 0, ahead)
        elif height == 4:
            by_4x2(a, b, bytes_, k, c, stride, acc, 0, ahead)
        elif height == 5:
            by_5x2(a, b, bytes_, k, c, stride, acc, 0, ahead)
        else:
            by_6x2(a, b, bytes_, k, c, stride, acc, 0, ahead)

    return callee(multiply_tile, variant=stored)


_multiply_floats = _make_multiply("float")
_multiply_halves = _make_multiply("half", prefetch=True)
_multiply_bytes = _make_multiply("byte", prefetch=True)


@callee
def tile_height(num_rows: int) -> int:
    """Most rows of a tile in a batch of `num_rows`; rows are shared out evenly among tiles."""
    if num_rows <= 6:
        return num_rows
    return 4 if num_rows <= 8 else 6


@callee
def num_tiles_of(num_rows: int) -> int:
    """Tiles of a batch; tile `t` holds rows `num_rows * t // n` up to `num_rows * (t + 1) // n`."""
    height = max(1, tile_height(num_rows))
    return (num_rows + height - 1) // height


@callee
def _group_of(num_rows: int) -> int:
    """Panels that a tile takes at a time: as many as leave registers for its sums."""
    height = tile_height(num_rows)
    if height <= 2:
        return 4
    return 3 if height <= 4 else 2


@callee
def interleaved(tiles: _Floats, row: int, num_rows: int, k: int) -> _Floats:
    """The places of a row's k values in `tiles` [num_rows * k].

    A tile that begins at row r lies at `tiles[r * k:]`, [k, its rows].
    """
    num_tiles = num_tiles_of(num_rows)
    tile = ((row + 1) * num_tiles - 1) // num_rows
    first = num_rows * tile // num_tiles
    height = num_rows * (tile + 1) // num_tiles - first
    return tiles[first * k + row - first : (first + height) * k : height]


@njit(cache=True, nogil=True)
def interleave(part: int, num_parts: int, x: _Floats, k: int, tiles: _Floats) -> None:
    """Copy `x` [num_rows, in_features] to `tiles` [num_rows * k], zeros beyond x's width."""
    num_rows, width = x.shape
    for row in range(num_rows * part // num_parts, num_rows * (part + 1) // num_parts):
        to = interleaved(tiles, row, num_rows, k)
        for i in range(width):
            to[i] = x[row, i]
        to[width:] = 0


@njit(cache=True, nogil=True)
def multiply(
    _part: int,
    num_parts: int,
    counter: int,
    rows: int,
    num_rows: int,
    panels: int,
    num_panels: int,
    k: int,
    half: bool,
    out: int,
    scales: int = 0,
    quantized: Literal[True] | None = None,
) -> None:
    """Take part in one product; addresses in bytes.

    Args:
        num_parts: threads that take part.
        counter: address of an int64, 0 when the first thread comes.
        rows: address of what `interleave` gave.
        num_rows: at least 1.
        panels: address of [num_panels, k, 8] halves, floats or bytes with a sign.
        num_panels: at least `MIN_PANELS`.
        k: a multiple of 4.
        half: whether panels that are not bytes are halves.
        out: address of float32 [num_rows, num_panels * 8].
        scales: address of float32 [num_panels * 8], for bytes.
        quantized: True if the panels are bytes; None else, and no code for bytes is compiled.
    """
    group = _group_of(num_rows)
    num_groups = num_panels // group
    chunk = max(1, num_groups // (num_parts * _CHUNKS_PER_THREAD))
    num_chunks = (num_groups + chunk - 1) // chunk
    num_tiles = num_tiles_of(num_rows)
    block_k = min(k, _BLOCK_K)
    block_tiles = max(1, _BLOCK_BYTES // (block_k * tile_height(num_rows) * _FLOAT_BYTES))
    num_blocks = (num_tiles + block_tiles - 1) // block_tiles
    stride = num_panels * LANES
    matrix = (panels, num_panels, k, half)
    while True:
        item: int = atomic_add(counter, 1)
        if item >= num_chunks * num_blocks:
            return
        block, first_group = item // num_chunks, item % num_chunks * chunk
        last_group = min(first_group + chunk, num_groups)
        tiles = (block * block_tiles, min((block + 1) * block_tiles, num_tiles), num_tiles)
        for first_k in range(0, k, block_k):
            count = min(block_k, k - first_k)
            for index in range(first_group, last_group):
                _multiply_group(
                    rows, num_rows, tiles, matrix, index * group, group, first_k, count, out,
                    quantized,
                )  # fmt: skip
        if last_group == num_groups and num_panels % group > 0:
            # The rest overlaps the last group: panels that both have are written again.
            _multiply_group(
                rows, num_rows, tiles, matrix, num_panels - group, group, 0, k, out, quantized
            )
        if quantized is not None:
            last_panel = num_panels if last_group == num_groups else last_group * group
            _scale(num_rows, tiles, first_group * group, last_panel, scales, out, stride)


@callee
def _multiply_group(
    rows: int,
    num_rows: int,
    tiles: tuple[int, int, int],
    matrix: tuple[int, int, int, bool],
    panel: int,
    group: int,
    first_k: int,
    num_k: int,
    out: int,
    quantized: Literal[True] | None,
) -> None:
    """Some tiles, (first, last + 1, of how many), times `group` panels, over a part of k."""
    first_tile, last_tile, num_tiles = tiles
    panels, num_panels, k, half = matrix
    element_bytes = _HALF_BYTES if half else _FLOAT_BYTES
    if quantized is not None:
        element_bytes = 1
    panel_bytes = k * LANES * element_bytes
    begin = panels + panel * panel_bytes + first_k * LANES * element_bytes
    # Each tile fetches as much of the next group as a panel of halves has: one, or two of bytes.
    ahead_bytes = k * LANES * _HALF_BYTES
    num_ahead = max(1, group * panel_bytes // ahead_bytes)
    stride = num_panels * LANES
    for tile in range(first_tile, last_tile):
        first = num_rows * tile // num_tiles
        height = num_rows * (tile + 1) // num_tiles - first
        args = (
            rows + (first * k + first_k * height) * _FLOAT_BYTES,
            begin,
            panel_bytes,
            num_k,
            out + (first * stride + panel * LANES) * _FLOAT_BYTES,
            stride,
            1 if first_k > 0 else 0,
            begin + group * panel_bytes + min(tile - first_tile, num_ahead - 1) * ahead_bytes,
        )
        if quantized is not None:
            _multiply_bytes(group, height, *args)
        elif half:
            _multiply_halves(group, height, *args)
        else:
            _multiply_floats(group, height, *args)


@callee
def _scale(
    num_rows: int,
    tiles: tuple[int, int, int],
    first_panel: int,
    last_panel: int,
    scales: int,
    out: int,
    stride: int,
) -> None:
    """Multiply the columns of some panels by their scales, in the rows of some tiles."""
    first_tile, last_tile, num_tiles = tiles
    offset, size = first_panel * LANES, (last_panel - first_panel) * LANES
    factors = floats_at(scales + offset * _FLOAT_BYTES, size)
    for row in range(num_rows * first_tile // num_tiles, num_rows * last_tile // num_tiles):
        sums = floats_at(out + (row * stride + offset) * _FLOAT_BYTES, size)
        for i in range(size):
            sums[i] *= factors[i]
