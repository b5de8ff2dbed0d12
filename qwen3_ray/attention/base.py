"""What attention needs to know of a step, and what a backend does with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch

from qwen3_ray.cpu import huge_pages
from qwen3_ray.errors import ConfigError

_LANES = 8
_PANEL_MULTIPLE = 16
"""Panels are read by two."""


class KVCache(NamedTuple):
    """Keys and values of one layer, each block's in panels of `lanes` columns.

    Where the attention backend wants panels, one has eight lanes and lies as `cpu.numba_tiles`
    reads it. Otherwise a panel is one slot's key, or a whole block's values: plainly
    [num_blocks, num_kv_heads, block_size, head_dim].
    Heads come before panels, so that what one work item reads (one head of one block) is
    contiguous.
    """

    key: torch.Tensor
    """[num_blocks, num_kv_heads, block_size / lanes, head_dim, lanes]; a slot is a column."""
    value: torch.Tensor
    """[num_blocks, num_kv_heads, head_dim / lanes, block_size, lanes]; a slot is a row."""


def allocate_kv_caches(
    *,
    num_layers: int,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    panels: bool,
) -> list[KVCache]:
    """One zeroed cache for each layer; `num_kv_heads` are this rank's.

    `panels` is the attention backend's.

    Raises:
        ConfigError: with panels, `block_size` or `head_dim` is not a multiple of 16.
    """
    key_lanes, value_lanes = 1, head_dim
    if panels:
        _check_multiple("block_size", block_size)
        _check_multiple("head_dim", head_dim)
        key_lanes = value_lanes = _LANES
    on_cpu = device.type == "cpu"
    zeros = _cpu_zeros if on_cpu else partial(torch.zeros, device=device)
    heads = (num_blocks, num_kv_heads)
    key_shape = (*heads, block_size // key_lanes, head_dim, key_lanes)
    value_shape = (*heads, head_dim // value_lanes, block_size, value_lanes)
    return [
        KVCache(zeros(key_shape, dtype=dtype), zeros(value_shape, dtype=dtype))
        for _ in range(num_layers)
    ]


def _check_multiple(field: str, value: int) -> None:
    if value % _PANEL_MULTIPLE != 0:
        raise ConfigError(field, value, f"must be a multiple of {_PANEL_MULTIPLE} on CPU")


def _cpu_zeros(shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
    """Zeros, whose memory is taken as blocks are first used."""
    memory = huge_pages.zeros((math.prod(shape) * dtype.itemsize,), np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


def kv_bytes_per_block(
    *, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes that one block takes over all layers of this rank."""
    return 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMetadata:
    """Where the rows of one step stand: int32 tensors on the model's device, all contiguous.

    Rows of one sequence are consecutive and are its last tokens: sequence `i` owns the rows
    `query_start_loc[i] : query_start_loc[i + 1]` and its last row has position `seq_lens[i] - 1`.
    """

    query_start_loc: torch.Tensor
    """[num_seqs + 1], starts with 0, ends with `num_rows`."""
    seq_lens: torch.Tensor
    """[num_seqs], tokens of the sequence up to and with this step's rows."""
    block_tables: torch.Tensor
    """[num_seqs, max_blocks]; block `j` holds the positions `j * block_size` and on."""
    slot_mapping: torch.Tensor
    """[num_rows], `block_id * block_size + offset` of each row."""
    block_size: int


class AttentionBackend(Protocol):
    """Paged attention; keys and values are always read back from the cache.

    A row's result depends on its own query and on the cached keys and values up to its position
    alone if the backend is row-invariant: not on the batch, nor on how the prompt was chunked.
    """

    row_invariant: bool
    panels: bool
    """Whether caches lie in panels of eight lanes; see `KVCache`."""

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """Store the rows' keys and values, each [num_rows, num_kv_heads, head_dim]."""

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """Causal attention of `q`, [num_rows, num_heads, head_dim]; returns the same shape.

        Query head `h` reads key/value head `h // (num_heads // num_kv_heads)`; the scale is
        `head_dim ** -0.5`.
        """
