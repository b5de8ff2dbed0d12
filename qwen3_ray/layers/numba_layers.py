"""All dense layers of a step in one call: every thread runs this, and waits where it must.

Each call of a kernel from Python costs 20 to 40 us, ten times a layer: a third of a small model's
step. Here a step is one call for each thread. The arithmetic is that of the single kernels, bit
for bit.
"""
# ruff: noqa: PLR0917 - Numba compiles calls by position

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from qwen3_ray.attention.numba_attention import attend
from qwen3_ray.attention.numba_blocks import Blocks, write_kv
from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_arrays import address_of, floats_at
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_sync import atomic_add, atomic_load, atomic_store, relax
from qwen3_ray.cpu.numba_tiles import UNROLL
from qwen3_ray.distributed.numba_lanes import SharedSum, sum_over_ranks
from qwen3_ray.layers.numba_linear import interleave, interleaved, multiply
from qwen3_ray.layers.numba_rows import add_and_normalise, gate_and_multiply, qk_norm_rope

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Words = npt.NDArray[np.int64]

_WORD_BYTES = 8
COUNTERS_PER_LAYER = 5
"""One for each product and for attention."""
BARRIER, FAILED, FIRST_COUNTER = range(3)
"""Words of `sync`: what threads meet at; not 0 if a rank is lost; the counters."""

# Columns of a layer in the table: addresses of vectors and caches, then four for each matrix.
INPUT_NORM, Q_NORM, K_NORM, POST_NORM, KEY_CACHE, VALUE_CACHE = range(6)
QKV, OUT, GATE_UP, DOWN = range(6, 22, 4)
_PANELS, _NUM_PANELS, _IS_HALF, _SCALES = range(4)
NUM_COLUMNS = 22


class LayerShape(NamedTuple):
    """What all layers of a model have in common; heads and sizes are this rank's."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    block_size: int
    kv_element_bytes: int
    eps: np.float32
    score_scale: np.float32
    """Of attention scores, as the power of two that they are."""


class StepRows(NamedTuple):
    """Where the rows of a step stand; see `AttentionMetadata`."""

    positions: _Ints
    slot_mapping: _Ints
    query_start_loc: _Ints
    seq_lens: _Ints
    block_tables: _Ints


class Scratch(NamedTuple):
    """Room for one step's activations, each [num_rows, ...] but `tiles`."""

    residual: _Floats
    tiles: _Floats
    """Flat: the interleaved rows of the next product."""
    qkv: _Floats
    q: _Floats
    k: _Floats
    v: _Floats
    attended: _Floats
    flat_attended: _Floats
    """The same memory, [num_rows, num_heads * head_dim]."""
    gate_up: _Floats


@njit(cache=True, nogil=True)
def run_layers(
    part: int,
    num_parts: int,
    sync: _Words,
    table: _Words,
    shape: LayerShape,
    rows: StepRows,
    cos_sin: _Floats,
    scratch: Scratch,
    delta: _Floats,
    shared: SharedSum,
    quantized: Literal[True] | None,
) -> None:
    """Run all layers; afterwards the hidden states are `scratch.residual + delta`.

    All threads call it at the same time, with arguments over the same memory.

    Args:
        sync: zeros, [FIRST_COUNTER + num_layers * COUNTERS_PER_LAYER].
        table: [num_layers, NUM_COLUMNS].
        shape: of the layers.
        rows: of the step.
        cos_sin: see `rotary.build_cos_sin`.
        scratch: `residual` holds zeros, the rest anything.
        delta: [num_rows, at least hidden_size]: the embedded tokens, then the last layer's output.
        shared: of the ranks; its `size` is 1 if there is but one.
        quantized: True if all matrices are bytes with scales, None if none is.
    """
    words = address_of(sync)
    hidden_size = scratch.residual.shape[1]
    attended = scratch.flat_attended
    turn = 0
    for layer in range(table.shape[0]):
        columns = table[layer]
        counter = words + (FIRST_COUNTER + layer * COUNTERS_PER_LAYER) * _WORD_BYTES
        blocks = Blocks(
            columns[KEY_CACHE], columns[VALUE_CACHE], shape.num_kv_heads, shape.block_size,
            shape.head_dim, shape.kv_element_bytes,
        )  # fmt: skip
        _add_norm(part, num_parts, delta, columns[INPUT_NORM], shape, scratch)
        turn = _meet(words, num_parts, turn)
        _product(
            part, num_parts, counter, columns[QKV:], hidden_size, scratch, scratch.qkv, quantized
        )
        turn = _meet(words, num_parts, turn)
        _rotate_and_write(part, num_parts, columns, blocks, shape, rows, cos_sin, scratch)
        turn = _meet(words, num_parts, turn)
        counter += _WORD_BYTES
        attend(
            part, num_parts, counter, scratch.q, blocks, rows.query_start_loc, rows.seq_lens,
            rows.block_tables, shape.score_scale, scratch.attended,
        )  # fmt: skip
        turn = _meet(words, num_parts, turn)
        interleave(part, num_parts, attended, _padded(attended.shape[1]), scratch.tiles)
        turn = _meet(words, num_parts, turn)
        counter += _WORD_BYTES
        _product(
            part, num_parts, counter, columns[OUT:], attended.shape[1], scratch, delta, quantized
        )
        turn = _meet(words, num_parts, turn)
        turn = _sum(part, num_parts, words, turn, shared, delta)
        _add_norm(part, num_parts, delta, columns[POST_NORM], shape, scratch)
        turn = _meet(words, num_parts, turn)
        counter += _WORD_BYTES
        _product(
            part,
            num_parts,
            counter,
            columns[GATE_UP:],
            hidden_size,
            scratch,
            scratch.gate_up,
            quantized,
        )
        turn = _meet(words, num_parts, turn)
        _gate(part, num_parts, shape.intermediate_size, scratch)
        turn = _meet(words, num_parts, turn)
        counter += _WORD_BYTES
        _product(
            part,
            num_parts,
            counter,
            columns[DOWN:],
            shape.intermediate_size,
            scratch,
            delta,
            quantized,
        )
        turn = _meet(words, num_parts, turn)
        turn = _sum(part, num_parts, words, turn, shared, delta)


@callee
def _meet(words: int, num_parts: int, turn: int) -> int:
    """Wait until all threads have come here `turn + 1` times."""
    address = words + BARRIER * _WORD_BYTES
    goal = (turn + 1) * num_parts
    if atomic_add(address, 1) + 1 < goal:
        spins = 0
        while atomic_load(address) < goal:
            relax(spins)
            spins += 1
    return turn + 1


@callee
def _padded(size: int) -> int:
    """Length of a sum in tiles."""
    return (size + UNROLL - 1) // UNROLL * UNROLL


@callee
def _rows_of(num_rows: int, part: int, num_parts: int) -> tuple[int, int]:
    return num_rows * part // num_parts, num_rows * (part + 1) // num_parts


@callee
def _add_norm(
    part: int, num_parts: int, delta: _Floats, weight: int, shape: LayerShape, scratch: Scratch
) -> None:
    """Add `delta` to the residual; its norm becomes the next product's rows."""
    num_rows, size = scratch.residual.shape
    start, stop = _rows_of(num_rows, part, num_parts)
    for row in range(start, stop):
        out = interleaved(scratch.tiles, row, num_rows, _padded(size))
        add_and_normalise(
            delta[row], scratch.residual[row], floats_at(weight, size), shape.eps, out
        )
        out[size:] = 0


@callee
def _gate(part: int, num_parts: int, size: int, scratch: Scratch) -> None:
    """SwiGLU's gate; the result becomes the next product's rows."""
    num_rows = scratch.gate_up.shape[0]
    start, stop = _rows_of(num_rows, part, num_parts)
    for row in range(start, stop):
        out = interleaved(scratch.tiles, row, num_rows, _padded(size))
        gate_and_multiply(scratch.gate_up[row], size, out)
        out[size:] = 0


@callee
def _rotate_and_write(
    part: int,
    num_parts: int,
    columns: _Words,
    blocks: Blocks,
    shape: LayerShape,
    rows: StepRows,
    cos_sin: _Floats,
    scratch: Scratch,
) -> None:
    """Normalise and rotate queries and keys, store keys and values: each thread its own rows."""
    q_norm = floats_at(columns[Q_NORM], shape.head_dim)
    k_norm = floats_at(columns[K_NORM], shape.head_dim)
    qk_norm_rope(
        part, num_parts, scratch.qkv, rows.positions, q_norm, k_norm, shape.eps, cos_sin, scratch.q,
        scratch.k, scratch.v,
    )  # fmt: skip
    write_kv(part, num_parts, scratch.k, scratch.v, blocks, rows.slot_mapping)


@callee
def _product(
    part: int,
    num_parts: int,
    counter: int,
    matrix: _Words,
    size: int,
    scratch: Scratch,
    out: _Floats,
    quantized: Literal[True] | None,
) -> None:
    """Take part in `out = scratch.tiles @ matrix`; the sums have `size` addends."""
    multiply(
        part, num_parts, counter, address_of(scratch.tiles), out.shape[0], matrix[_PANELS],
        matrix[_NUM_PANELS], _padded(size), matrix[_IS_HALF] != 0, address_of(out),
        matrix[_SCALES], quantized,
    )  # fmt: skip


@callee
def _sum(
    part: int, num_parts: int, words: int, turn: int, shared: SharedSum, delta: _Floats
) -> int:
    """Add up the ranks' outputs. With a rank lost, the step is finished with wrong numbers."""
    if shared.size == 1:
        return turn
    if not sum_over_ranks(part, num_parts, shared, address_of(delta), delta.size):
        atomic_store(words + FAILED * _WORD_BYTES, 1)
    return _meet(words, num_parts, turn)
