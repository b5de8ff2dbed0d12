"""`x @ W.T` in which the bits of a row depend on that row alone, whatever rows come with it.

A sum over the inputs is cut into splits of `SPLIT` inputs each, from input 0 on. A split is summed
up from zero, in float32, in steps of a fixed number of inputs; then the splits are added, the first
one first. Where a product has many tiles a program computes all splits of its tile. Where it has
few, each split is a program of its own, so that they fill the device, and a second kernel adds
what they found. One function computes a split in either way, with instructions of one shape, and
both ways add rounded float32 numbers in the same order: so the way changes no bit.
"""

# ruff: noqa: PLR0917 - Triton's functions are called by position

from __future__ import annotations

import torch
import triton
import triton.language as tl

from qwen3_ray.gpu.triton_dot import dot
from qwen3_ray.gpu.triton_jit import device_function, kernel

SPLIT = 512
"""Inputs in a split: divides the widths of all dense Qwen3 models, is eight steps of 16-bit
numbers, enough to keep loads ahead of products, and at one row gives Qwen3-4B's narrowest product,
of 20 tiles, 160 programs."""
BLOCK_N = 128
MIN_TILES = 128
"""With fewer tiles than this, about the multiprocessors of a large device, some would idle."""
MAX_SPLIT_ROWS = 128
"""Beyond it the splits' sums would take too much memory, and moving them too much time."""

_GROUP = tl.constexpr(8)
_MERGE_BLOCK = 512


@kernel(do_not_specialize=["num_rows"])
def multiply_tiles(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    out_features: tl.tensor,
    in_features: tl.constexpr,
    steps_per_program: tl.constexpr,
    steps_per_split: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """Program (tile, part): the sums of part `part` of the inputs, `steps_per_program` steps.

    x: [num_rows, in_features]
    weight: [out_features, in_features], of the same dtype
    out: [num_parts, num_rows, out_features]
    """
    first_row, first_column = _tile(num_rows, out_features, block_m, block_n)
    part = tl.program_id(1)
    # Offsets within a tile need no 64 bits.
    rows, columns = tl.arange(0, block_m), tl.arange(0, block_n)
    num_rows_left, num_columns_left = num_rows - first_row, out_features - first_column
    total = _sum_splits(
        x + first_row.to(tl.int64) * in_features,
        weight + first_column.to(tl.int64) * in_features,
        rows,
        # Outputs that there are not are computed from the last one's weights, and not stored.
        tl.minimum(columns, num_columns_left - 1),
        num_rows_left,
        part * steps_per_program,
        in_features,
        steps_per_program,
        steps_per_split,
        block_k,
    )
    out += (part.to(tl.int64) * num_rows + first_row) * out_features + first_column
    inside = (rows[:, None] < num_rows_left) & (columns[None, :] < num_columns_left)
    offsets = rows[:, None] * out_features + columns[None, :]
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=inside)


@kernel(do_not_specialize=["num_elements"])
def merge_splits(
    partial: tl.tensor,
    out: tl.tensor,
    num_elements: tl.tensor,
    num_splits: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """float32 [num_splits, num_elements] -> their sums, the first split first."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < num_elements
    partial += index
    total = tl.zeros([block], tl.float32)
    for _ in tl.static_range(num_splits):
        total = _merge(total, tl.load(partial, mask=inside, other=0.0))
        partial += num_elements
    tl.store(out + index, total.to(out.dtype.element_ty), mask=inside)


@device_function
def _tile(
    num_rows: tl.tensor, out_features: tl.tensor, block_m: tl.constexpr, block_n: tl.constexpr
) -> tl.tensor:
    """First row and first output of this program's tile.

    Programs that run side by side share weights: a few tiles of rows go through the outputs
    together.
    """
    index = tl.program_id(0)
    num_row_tiles = tl.cdiv(num_rows, block_m)
    group_size = _GROUP * tl.cdiv(out_features, block_n)
    first_tile = index // group_size * _GROUP
    height = tl.minimum(num_row_tiles - first_tile, _GROUP)
    inside = index % group_size
    return (first_tile + inside % height) * block_m, inside // height * block_n


@device_function
def _sum_splits(
    x: tl.tensor,
    weight: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    num_rows: tl.tensor,
    first: tl.tensor,
    in_features: tl.constexpr,
    num_steps: tl.constexpr,
    steps_per_split: tl.constexpr,
    block_k: tl.constexpr,
) -> tl.tensor:
    """[rows, columns] of the product, over `num_steps` steps of inputs from step `first` on.

    `first` begins a split. Steps of several splits are one loop: loads need not wait for a split
    to end.
    """
    inputs = tl.arange(0, block_k)
    x_offsets = rows[:, None] * in_features + inputs[None, :]
    weight_offsets = columns[None, :] * in_features + inputs[:, None]
    there = rows[:, None] < num_rows
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    split = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for step in range(num_steps):
        skipped = (first + step) * block_k
        if in_features % (num_steps * block_k) == 0:
            x_tile = tl.load(x + skipped + x_offsets, mask=there, other=0.0)
            weight_tile = tl.load(weight + skipped + weight_offsets)
        else:
            inside = inputs < in_features - skipped
            x_tile = tl.load(x + skipped + x_offsets, mask=there & inside[None, :], other=0.0)
            weight_tile = tl.load(
                weight + skipped + weight_offsets, mask=inside[:, None], other=0.0
            )
        split = dot(x_tile, weight_tile, split)
        if step % steps_per_split == steps_per_split - 1:
            total = _merge(total, split)
            split = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    if num_steps % steps_per_split != 0:
        total = _merge(total, split)
    return total


@device_function
def _merge(total: tl.tensor, split: tl.tensor) -> tl.tensor:
    """One more split; both ways begin with a total of zero."""
    return total + split


def multiply(x: torch.Tensor, weight: torch.Tensor, *, split: int = SPLIT) -> torch.Tensor:
    """[num_rows, in_features] and [out_features, in_features] -> [num_rows, out_features].

    Both are of one dtype (float32, float16 or bfloat16), and `weight` is contiguous. Which way is
    taken follows from the shapes.

    Args:
        x: rows.
        weight: W.
        split: inputs in a split, a multiple of 128. Another one gives other bits.
    """
    num_rows, num_column_tiles = x.shape[0], triton.cdiv(weight.shape[0], BLOCK_N)
    num_tiles = num_column_tiles * triton.cdiv(num_rows, 64)
    num_large_tiles = num_column_tiles * triton.cdiv(num_rows, 128)
    if num_tiles < MIN_TILES and num_rows <= MAX_SPLIT_ROWS and weight.shape[1] > split:
        return multiply_apart(x, weight, split=split)
    block_m = 128 if num_rows > 64 and num_large_tiles >= MIN_TILES else 64
    return multiply_whole(x, weight, block_m=block_m, split=split)


def multiply_whole(
    x: torch.Tensor, weight: torch.Tensor, *, block_m: int, split: int = SPLIT
) -> torch.Tensor:
    """As `multiply`; each program computes all splits of its tile of `block_m` rows, 64 or 128."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    num_steps = triton.cdiv(weight.shape[1], block_k(x.dtype))
    # Two programs of 64 rows, or one of 128, share a multiprocessor's 228 KiB.
    num_stages = 4 if block_m == 64 else 3
    _launch(x, weight, out, num_steps, split=split, block_m=block_m, num_stages=num_stages)
    return out


def multiply_apart(x: torch.Tensor, weight: torch.Tensor, *, split: int = SPLIT) -> torch.Tensor:
    """As `multiply`; each split is a program's."""
    num_splits = triton.cdiv(weight.shape[1], split)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    partial = torch.empty(num_splits, *out.shape, dtype=torch.float32, device=x.device)
    num_steps = split // block_k(x.dtype)
    _launch(x, weight, partial, num_steps, split=split, block_m=64, num_stages=3)
    if out.numel() > 0:
        grid = (triton.cdiv(out.numel(), _MERGE_BLOCK),)
        merge_splits[grid](partial, out, out.numel(), num_splits=num_splits, block=_MERGE_BLOCK)
    return out


def block_k(dtype: torch.dtype) -> int:
    """Inputs in a step: 128 bytes of each row, a line of memory."""
    return 128 // dtype.itemsize


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    steps_per_program: int,
    *,
    split: int,
    block_m: int,
    num_stages: int,
) -> None:
    """Compute `out`, [num_parts * num_rows, out_features] in memory."""
    (num_rows, in_features), out_features = x.shape, weight.shape[0]
    num_tiles = triton.cdiv(num_rows, block_m) * triton.cdiv(out_features, BLOCK_N)
    num_parts = triton.cdiv(triton.cdiv(in_features, block_k(x.dtype)), steps_per_program)
    if num_tiles == 0:
        return
    multiply_tiles[num_tiles, num_parts](
        x.contiguous(),
        weight,
        out,
        num_rows,
        out_features,
        in_features=in_features,
        steps_per_program=steps_per_program,
        steps_per_split=split // block_k(x.dtype),
        block_m=block_m,
        block_n=BLOCK_N,
        block_k=block_k(x.dtype),
        num_warps=block_m // 16,
        num_stages=num_stages,
    )
