"""Choosing experts for rows on the device, and sorting what was chosen by experts.

A pair is a row and one of the experts that it chose. The pairs of this rank's experts are sorted
by expert, rows ascending within each; as many pairs of one expert as a tile has rows make a tile,
what `triton_experts` multiplies at once. The host learns nothing of it: grids and buffers follow
from shapes, and what they are too large by is left unwritten.
"""

# ruff: noqa: PLR0917 - Triton's functions are called by position

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.layers.moe import Routing

_FEW_ROWS, _MANY_ROWS = 16, 32  # of a chunk: few are sorted by the one program that chooses
_CHUNKS_AT_ONCE = tl.constexpr(16)
_TAKEN = tl.constexpr(-(2**63))  # less than every key of a logit


class Pairs(NamedTuple):
    """Pairs of rows and this rank's experts; all on the device, int32 but for the weights."""

    rows: torch.Tensor
    """[num_rows * top_k], the rows of the sorted pairs."""
    positions: torch.Tensor
    """[num_rows, top_k], where a row's pairs are among the sorted: by experts, ascending.

    -1 stands for an expert of another rank.
    """
    weights: torch.Tensor
    """[num_rows, top_k] float32, the experts' shares in the row's result, in the same order."""
    tiles: torch.Tensor
    """[max_num_tiles, 3]: local expert, its first sorted pair in the tile, and where they end."""
    num_tiles: torch.Tensor
    """[1], how many of the tiles are."""


def max_num_tiles(num_pairs: int, num_experts: int, tile_rows: int) -> int:
    """The most tiles that so many pairs of so many experts can make."""
    return min(num_pairs, -(-num_pairs // tile_rows) + num_experts)


def route(logits: torch.Tensor, routing: Routing, tile_rows: int) -> Pairs:
    """Let each row choose as in `moe.route`, and sort the pairs into tiles of `tile_rows`.

    A row chooses its largest logits, which are its largest probabilities. `logits` is contiguous,
    [num_rows, number of all experts], at least one row.
    """
    num_rows, num_experts = logits.shape
    num_pairs = num_rows * routing.top_k

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    pairs = Pairs(
        rows=new(num_pairs),
        positions=new(num_rows, routing.top_k),
        weights=new(num_rows, routing.top_k, dtype=torch.float32),
        tiles=new(max_num_tiles(num_pairs, routing.num_local_experts, tile_rows), 3),
        num_tiles=new(1),
    )
    is_alone = num_rows <= _FEW_ROWS
    chunk_rows = _FEW_ROWS if is_alone else _MANY_ROWS
    num_chunks = -(-num_rows // chunk_rows)
    experts, counts = new(num_rows, routing.top_k), new(num_chunks, routing.num_local_experts)
    _choose[num_chunks,](
        logits,
        experts,
        counts,
        *pairs,
        num_rows,
        routing.first_expert,
        num_experts,
        routing.num_local_experts,
        routing.top_k,
        routing.normalise,
        is_alone,
        chunk_rows,
        _power_of_2(num_experts),
        tile_rows,
        num_warps=4 if is_alone else 8,
    )
    if not is_alone:
        _sort[num_chunks,](
            experts,
            counts,
            pairs.rows,
            pairs.positions,
            pairs.tiles,
            pairs.num_tiles,
            num_rows,
            num_chunks,
            routing.num_local_experts,
            routing.top_k,
            _power_of_2(chunk_rows * routing.top_k),
            chunk_rows,
            _power_of_2(routing.num_local_experts),
            tile_rows,
            num_warps=4,
        )
    return pairs


def _power_of_2(number: int) -> int:
    """The least that is no less than `number`."""
    return 1 << (number - 1).bit_length()


@kernel(do_not_specialize=["num_rows", "first_expert"])
def _choose(
    logits: tl.tensor,
    experts: tl.tensor,
    counts: tl.tensor,
    sorted_rows: tl.tensor,
    positions: tl.tensor,
    weights: tl.tensor,
    tiles: tl.tensor,
    num_tiles: tl.tensor,
    num_rows: tl.tensor,
    first_expert: tl.tensor,
    num_experts: tl.constexpr,
    num_local_experts: tl.constexpr,
    top_k: tl.constexpr,
    normalise: tl.constexpr,
    is_alone: tl.constexpr,
    chunk_rows: tl.constexpr,
    block_experts: tl.constexpr,
    tile_rows: tl.constexpr,
) -> None:
    """Fills `weights` for a chunk of rows; all of the `Pairs` where one chunk `is_alone`.

    Else `experts`, local or -1, in the place of positions; `positions`, as if the chunk's rows
    were all and each expert's pairs began at 0; and the chunk's `counts` of pairs by expert.
    """
    chunk = tl.program_id(0)
    rows = chunk * chunk_rows + tl.arange(0, chunk_rows)
    columns = tl.arange(0, block_experts)
    is_row = (rows < num_rows)[:, None]
    is_expert = (columns < num_experts)[None, :]
    offsets = rows[:, None] * num_experts + columns[None, :]
    x = tl.load(logits + offsets, mask=is_row & is_expert, other=0.0).to(tl.float32)
    x = tl.where(is_expert, x, float("-inf"))
    chosen = _largest(x, top_k, block_experts)

    shares = tl.exp(x - tl.max(x, axis=1)[:, None])
    shares = tl.div_rn(shares, _across(tl.sum(shares, axis=1), shares))
    if normalise:
        total = tl.sum(tl.where(chosen, shares, 0.0), axis=1)
        shares = tl.div_rn(shares, _across(total, shares))

    is_pair = chosen & is_row
    slots = rows[:, None] * top_k + _count_before(chosen, 1)
    tl.store(weights + slots, shares, mask=is_pair)

    local = columns - first_expert
    is_local = (local >= 0) & (local < num_local_experts)
    is_own = is_pair & is_local[None, :]
    ranks = _count_before(is_own, 0)
    count = tl.sum(is_own.to(tl.int32), axis=0)
    if is_alone:
        places = (tl.cumsum(count, 0) - count)[None, :] + ranks
        tl.store(positions + slots, tl.where(is_own, places, -1), mask=is_pair)
        tl.store(sorted_rows + places, _across(rows, places), mask=is_own)
        _write_tiles(tiles, num_tiles, local, count, 0, 1, tile_rows)
    else:
        owners = tl.where(is_local, local, -1)[None, :] + tl.zeros_like(ranks)
        tl.store(experts + slots, owners, mask=is_pair)
        tl.store(positions + slots, ranks, mask=is_pair)
        tl.store(counts + chunk * num_local_experts + local, count, mask=is_local)


@kernel(do_not_specialize=["num_rows", "num_chunks"])
def _sort(
    experts: tl.tensor,
    counts: tl.tensor,
    sorted_rows: tl.tensor,
    positions: tl.tensor,
    tiles: tl.tensor,
    num_tiles: tl.tensor,
    num_rows: tl.tensor,
    num_chunks: tl.tensor,
    num_local_experts: tl.constexpr,
    top_k: tl.constexpr,
    block_pairs: tl.constexpr,
    chunk_rows: tl.constexpr,
    block_experts: tl.constexpr,
    tile_rows: tl.constexpr,
) -> None:
    """Finishes for a chunk what `_choose` began; each program writes its share of the tiles."""
    chunk = tl.program_id(0)
    local = tl.arange(0, block_experts)
    total = tl.zeros([block_experts], tl.int32)
    before = tl.zeros([block_experts], tl.int32)
    for first in range(0, num_chunks, _CHUNKS_AT_ONCE):
        others = first + tl.arange(0, _CHUNKS_AT_ONCE)
        mask = (others < num_chunks)[:, None] & (local < num_local_experts)[None, :]
        offsets = others[:, None] * num_local_experts + local[None, :]
        part = tl.load(counts + offsets, mask=mask, other=0)
        total += tl.sum(part, axis=0)
        before += tl.sum(tl.where((others < chunk)[:, None], part, 0), axis=0)
    starts = tl.cumsum(total, 0) - total + before

    indices = tl.arange(0, block_pairs)
    pairs = chunk * (chunk_rows * top_k) + indices
    mask = (indices < chunk_rows * top_k) & (pairs < num_rows * top_k)
    owners = tl.load(experts + pairs, mask=mask, other=-1)
    places = tl.load(positions + pairs, mask=mask, other=0)
    places += tl.gather(starts, tl.maximum(owners, 0), 0)
    tl.store(positions + pairs, tl.where(owners >= 0, places, -1), mask=mask)
    tl.store(sorted_rows + places, pairs // top_k, mask=mask & (owners >= 0))
    _write_tiles(tiles, num_tiles, local, total, chunk, num_chunks, tile_rows)


@device_function
def _largest(x: tl.tensor, top_k: tl.constexpr, width: tl.constexpr) -> tl.tensor:
    """Whether each of [rows, width] float32 is of its row's `top_k` largest, lowest columns first.

    NaN counts as larger or as less than all else: so many are chosen in any case.
    """
    # Integers in the order of the floats, and where those are equal against that of the columns.
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    order = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)
    keys = order * width + (width - 1 - tl.arange(0, width))[None, :]
    for _ in range(top_k):
        largest = tl.max(keys, axis=1)
        keys = tl.where(keys == largest[:, None], _TAKEN, keys)
    return keys == _TAKEN


@device_function
def _across(column: tl.tensor, like: tl.tensor) -> tl.tensor:
    """[rows] -> [rows, width]: the same in all columns of `like`."""
    return column[:, None] + tl.zeros_like(like)


@device_function
def _count_before(mask: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    """How many are true before each along `axis`, int32."""
    ones = mask.to(tl.int32)
    return tl.cumsum(ones, axis) - ones


@device_function
def _write_tiles(
    tiles: tl.tensor,
    num_tiles: tl.tensor,
    expert: tl.tensor,
    count: tl.tensor,
    part: tl.tensor,
    num_parts: tl.tensor,
    tile_rows: tl.constexpr,
) -> None:
    """Cut the sorted pairs of experts, `count` each, into tiles: one part of `num_parts` of it."""
    start = tl.cumsum(count, 0) - count
    stop = start + count
    num = tl.cdiv(count, tile_rows)
    first_tile = tl.cumsum(num, 0) - num
    for index in range(part, tl.max(num, axis=0), num_parts):
        entry = tiles + (first_tile + index) * 3
        start_of_tile = start + index * tile_rows
        mask = index < num
        tl.store(entry, expert, mask=mask)
        tl.store(entry + 1, start_of_tile, mask=mask)
        tl.store(entry + 2, tl.minimum(start_of_tile + tile_rows, stop), mask=mask)
    tl.store(num_tiles, tl.sum(num, axis=0))
