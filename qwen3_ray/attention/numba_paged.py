"""Paged attention on CPU behind the `AttentionBackend` protocol; see `numba_attention`."""

from __future__ import annotations

import numpy as np
import torch

from qwen3_ray.attention import numba_attention, numba_blocks
from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.attention.numba_blocks import Blocks
from qwen3_ray.cpu.thread_pool import ThreadPool


class NumbaPagedAttention:
    """Row-invariant paged attention over caches of float32 or float16."""

    row_invariant = True
    panels = True

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """See `AttentionBackend`; `k` and `v` are contiguous.

        What float16 cannot hold becomes the largest that it can.
        """
        self._pool.run(
            numba_blocks.write_kv,
            k.numel(),
            k.numpy(),
            v.numpy(),
            blocks_of(cache),
            metadata.slot_mapping.numpy(),
        )

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """See `AttentionBackend`; `q` is contiguous."""
        out = torch.empty_like(q)
        counter = np.zeros(1, np.int64)
        self._pool.run(
            numba_attention.attend,
            int(metadata.seq_lens.max()) * q.numel(),
            counter.ctypes.data,
            q.numpy(),
            blocks_of(cache),
            metadata.query_start_loc.numpy(),
            metadata.seq_lens.numpy(),
            metadata.block_tables.numpy(),
            numba_attention.score_scale(q.shape[2]),
            out.numpy(),
        )
        return out


def blocks_of(cache: KVCache) -> Blocks:
    """The cache for kernels; valid as long as it lives."""
    _, num_kv_heads, num_panels, block_size, lanes = cache.value.shape
    return Blocks(
        keys=cache.key.data_ptr(),
        values=cache.value.data_ptr(),
        num_kv_heads=num_kv_heads,
        block_size=block_size,
        head_dim=num_panels * lanes,
        element_bytes=cache.key.element_size(),
    )
