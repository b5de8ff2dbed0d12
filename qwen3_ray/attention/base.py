"""What attention needs to know of a step, and what a backend does with it."""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch


class KVCache(NamedTuple):
    """Keys and values of one layer: each [num_blocks, num_kv_heads, block_size, head_dim].

    Heads come before slots, so that what one work item reads (one head of one block) is contiguous.
    """

    key: torch.Tensor
    value: torch.Tensor


def allocate_kv_caches(
    *,
    num_layers: int,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KVCache]:
    """One zeroed cache for each layer; `num_kv_heads` are this rank's."""
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    zeros = _cpu_zeros if device.type == "cpu" else partial(torch.zeros, device=device)
    return [
        KVCache(zeros(shape, dtype=dtype), zeros(shape, dtype=dtype)) for _ in range(num_layers)
    ]


def _cpu_zeros(shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
    """Zeros on huge pages where the system has them; memory is taken as blocks are first used.

    Blocks are read in any order: with small pages their address translation took 1.7 times as
    long as reading them.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without huge pages refuses the advice; small pages serve as well.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


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
    Rows from `num_tokens` on are padding: nothing is written for them, their attention is zero.
    """

    query_start_loc: torch.Tensor
    """[num_seqs + 1], starts with 0, ends with `num_tokens`."""
    seq_lens: torch.Tensor
    """[num_seqs], tokens of the sequence up to and with this step's rows."""
    block_tables: torch.Tensor
    """[num_seqs, max_blocks]; block `j` holds the positions `j * block_size` and on."""
    slot_mapping: torch.Tensor
    """[num_rows], `block_id * block_size + offset` of each row; -1 for padding."""
    num_tokens: int
    block_size: int


class AttentionBackend(Protocol):
    """Paged attention; keys and values are always read back from the cache.

    A row's result depends on its own query and on the cached keys and values up to its position
    alone if the backend is row-invariant: not on the batch, nor on how the prompt was chunked.
    """

    row_invariant: bool

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """Store the rows' keys and values, each [num_rows, num_kv_heads, head_dim]."""

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """Causal attention of `q`, [num_rows, num_heads, head_dim]; returns the same shape.

        Query head `h` reads key/value head `h // (num_heads // num_kv_heads)`; the scale is
        `head_dim ** -0.5`.
        """
