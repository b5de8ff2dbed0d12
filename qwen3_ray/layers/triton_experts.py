"""All experts of a layer at once: products of tiles of rows, each with its own expert's weights.

The bits of a row depend on that row alone. Which tile computes it, and where in the tile it lies,
changes nothing: every sum goes through the inputs in one order, in steps of one size, and tiles of
64 and of 128 rows use instructions of one shape. The results of a row's experts are added in
ascending order of experts.
"""

# ruff: noqa: PLR0917 - Triton's functions are called by position

from __future__ import annotations

import torch
import triton
import triton.language as tl

from qwen3_ray.gpu.triton_dot import dot
from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.layers.linear import is_finite
from qwen3_ray.layers.moe import ExpertShape
from qwen3_ray.layers.triton_moe import Pairs, route

_BLOCK_N = 128
_COMBINE_BLOCK = 1_024


class TritonExperts:
    """This rank's experts of one layer, stacked; see `ExpertStack`."""

    def __init__(self, shape: ExpertShape) -> None:
        """What it holds is undefined until all are loaded."""
        self._routing, hidden_size, size, dtype, device = shape
        num = self._routing.num_local_experts
        self._gate_up = torch.empty(num, 2 * size, hidden_size, dtype=dtype, device=device)
        self._down = torch.empty(num, hidden_size, size, dtype=dtype, device=device)

    def load(self, index: int, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
        """See `ExpertStack`."""
        size = self._down.shape[2]
        gate_up = self._gate_up[index]
        gate_up[:size].copy_(gate)
        gate_up[size:].copy_(up)
        self._down[index].copy_(down)
        if not (is_finite(gate_up) and is_finite(self._down[index])):
            raise ValueError("an expert holds NaN or infinity")

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """See `ExpertStack`."""
        num_rows, routing = x.shape[0], self._routing
        if num_rows == 0 or routing.num_local_experts == 0:
            return torch.zeros_like(x)
        mean_rows = num_rows * routing.top_k // logits.shape[1]
        tile_rows = 64 if mean_rows < 128 else 128
        pairs = route(logits.contiguous(), routing, tile_rows)
        between = self.gate_up(x.contiguous(), pairs, tile_rows)
        return combine(self.down(between, pairs, tile_rows), pairs)

    def gate_up(self, x: torch.Tensor, pairs: Pairs, tile_rows: int) -> torch.Tensor:
        """SwiGLU's gate applied: [num_rows, hidden_size] -> [num_pairs, intermediate_size].

        In the order of the sorted pairs. Tiles have 64 or 128 rows.
        """
        _, hidden_size, size = self._down.shape
        out = x.new_empty(pairs.rows.shape[0], size)
        _multiply_gate_up[triton.cdiv(2 * size, _BLOCK_N), pairs.tiles.shape[0]](
            x,
            pairs.rows,
            pairs.tiles,
            pairs.num_tiles,
            self._gate_up,
            out,
            hidden_size,
            size,
            **_shape(tile_rows, x.dtype),
        )
        return out

    def down(self, x: torch.Tensor, pairs: Pairs, tile_rows: int) -> torch.Tensor:
        """[num_pairs, intermediate_size] -> [num_pairs, hidden_size], both sorted."""
        _, hidden_size, size = self._down.shape
        out = x.new_empty(x.shape[0], hidden_size)
        _multiply_down[triton.cdiv(hidden_size, _BLOCK_N), pairs.tiles.shape[0]](
            x,
            pairs.tiles,
            pairs.num_tiles,
            self._down,
            out,
            hidden_size,
            size,
            **_shape(tile_rows, x.dtype),
        )
        return out


def combine(x: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """[num_pairs, hidden_size], sorted -> [num_rows, hidden_size], rows' weighted sums."""
    num_rows, top_k = pairs.positions.shape
    hidden_size = x.shape[1]
    out = x.new_empty(num_rows, hidden_size)
    _combine[num_rows, triton.cdiv(hidden_size, _COMBINE_BLOCK)](
        x, pairs.positions, pairs.weights, out, hidden_size, top_k, _COMBINE_BLOCK
    )
    return out


def _shape(tile_rows: int, dtype: torch.dtype) -> dict[str, int]:
    """How a tile is computed: a group of four warps for 64 rows, 128 bytes of a row a step."""
    return {
        "block_m": tile_rows,
        "block_n": _BLOCK_N,
        "block_k": 128 // dtype.itemsize,
        "num_warps": tile_rows // 16,
        "num_stages": 4 if tile_rows == 64 else 3,
    }


@kernel
def _multiply_gate_up(
    x: tl.tensor,
    sorted_rows: tl.tensor,
    tiles: tl.tensor,
    num_tiles: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    hidden_size: tl.constexpr,
    size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """Program (columns, tile), of `block_n` sums: gate and up of half as many columns."""
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    expert, pairs, stop = _load_tile(tiles, tile, block_m)
    # Rows and columns that there are not are computed from others, and not stored.
    rows = tl.load(sorted_rows + tl.minimum(pairs, stop - 1)).to(tl.int64)
    # Gate and up of a column lie side by side in a tile, as they do not in the weights.
    sums = tl.arange(0, block_n)
    column = tl.minimum(tl.program_id(0) * (block_n // 2) + sums // 2, size - 1)
    source = sums % 2 * size + column
    total = _multiply(
        x + rows[:, None] * hidden_size,
        weight + expert * (2 * size * hidden_size) + source[None, :] * hidden_size,
        hidden_size,
        block_m,
        block_n,
        block_k,
    )
    gate, up = tl.split(tl.reshape(total, [block_m, block_n // 2, 2]))
    result = gate * tl.sigmoid(gate) * up
    columns = tl.program_id(0) * (block_n // 2) + tl.arange(0, block_n // 2)
    out += pairs[:, None].to(tl.int64) * size + columns[None, :]
    mask = (pairs < stop)[:, None] & (columns < size)[None, :]
    tl.store(out, result.to(out.dtype.element_ty), mask=mask)


@kernel
def _multiply_down(
    x: tl.tensor,
    tiles: tl.tensor,
    num_tiles: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    hidden_size: tl.constexpr,
    size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """Program (columns, tile)."""
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    expert, pairs, stop = _load_tile(tiles, tile, block_m)
    columns = tl.program_id(0) * block_n + tl.arange(0, block_n)
    total = _multiply(
        x + tl.minimum(pairs, stop - 1)[:, None].to(tl.int64) * size,
        weight
        + expert * (hidden_size * size)
        + tl.minimum(columns, hidden_size - 1)[None, :] * size,
        size,
        block_m,
        block_n,
        block_k,
    )
    out += pairs[:, None].to(tl.int64) * hidden_size + columns[None, :]
    mask = (pairs < stop)[:, None] & (columns < hidden_size)[None, :]
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)


@kernel
def _combine(
    x: tl.tensor,
    positions: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    hidden_size: tl.constexpr,
    top_k: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Program (row, columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < hidden_size
    total = tl.zeros([block], tl.float32)
    for choice in tl.static_range(top_k):
        position = tl.load(positions + row * top_k + choice)
        weight = tl.load(weights + row * top_k + choice)
        source = x + position.to(tl.int64) * hidden_size + columns
        values = tl.load(source, mask=inside & (position >= 0), other=0.0)
        total += weight * values.to(tl.float32)
    tl.store(out + row * hidden_size + columns, total.to(out.dtype.element_ty), mask=inside)


@device_function
def _load_tile(tiles: tl.tensor, tile: tl.tensor, block_m: tl.constexpr) -> tl.tensor:
    """Expert of a tile, numbers of its sorted pairs, and where the expert's pairs end."""
    expert = tl.load(tiles + tile * 3).to(tl.int64)
    first, stop = tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    return expert, first + tl.arange(0, block_m), stop


@device_function
def _multiply(
    x: tl.tensor,
    weight: tl.tensor,
    in_features: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> tl.tensor:
    """Where rows of x and of weights begin, [m, 1] and [1, n] -> their products, [m, n]."""
    inputs = tl.arange(0, block_k)
    x += inputs[None, :]
    weight += inputs[:, None]
    total = tl.zeros([block_m, block_n], tl.float32)
    for done in range(0, in_features, block_k):
        if in_features % block_k == 0:
            x_tile = tl.load(x)
            weight_tile = tl.load(weight)
        else:
            inside = inputs < in_features - done
            x_tile = tl.load(x, mask=inside[None, :], other=0.0)
            weight_tile = tl.load(weight, mask=inside[:, None], other=0.0)
        total = dot(x_tile, weight_tile, total)
        x += block_k
        weight += block_k
    return total
