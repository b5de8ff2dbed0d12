"""Paged attention on CPU behind the `AttentionBackend` protocol; see `numba_attention`."""

from __future__ import annotations

import numpy as np
import torch

from qwen3_ray.attention import numba_attention
from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.cpu.thread_pool import ThreadPool


class NumbaPagedAttention:
    """Row-invariant paged attention over float32 caches."""

    row_invariant = True

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """See `AttentionBackend`; `k` and `v` are contiguous."""
        self._pool.run(
            numba_attention.write_kv,
            k.numel(),
            k.numpy(),
            v.numpy(),
            cache.key.numpy(),
            cache.value.numpy(),
            metadata.slot_mapping.numpy(),
            k.shape[0],
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
            cache.key.numpy(),
            cache.value.numpy(),
            metadata.query_start_loc.numpy(),
            metadata.seq_lens.numpy(),
            metadata.block_tables.numpy(),
            q.shape[0],
            numba_attention.score_scale(q.shape[2]),
            out.numpy(),
        )
        return out
