"""Paged attention in plain torch: the oracle of every backend, and what CUDA runs without one."""

from __future__ import annotations

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache


class ReferenceAttention:
    """Gathers each sequence's blocks and attends over them at once, one sequence at a time.

    Reads and writes caches in panels, too.
    """

    row_invariant = False
    panels = False

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """See `AttentionBackend`."""
        slots = metadata.slot_mapping.long()
        blocks, offsets = slots // metadata.block_size, slots % metadata.block_size
        key_lanes, value_lanes = cache.key.shape[-1], cache.value.shape[-1]
        keys, values = k.to(cache.key.dtype), v.to(cache.value.dtype)
        cache.key[blocks, :, offsets // key_lanes, :, offsets % key_lanes] = keys
        cache.value[blocks, :, :, offsets] = values.view(*values.shape[:2], -1, value_lanes)

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """See `AttentionBackend`."""
        out = torch.zeros_like(q)
        starts = metadata.query_start_loc.tolist()
        for index, seq_len in enumerate(metadata.seq_lens.tolist()):
            rows = slice(starts[index], starts[index + 1])
            num_blocks = -(-seq_len // metadata.block_size)
            blocks = metadata.block_tables[index, :num_blocks].long()
            keys, values = (part[:, :seq_len].to(q.dtype) for part in read_blocks(cache, blocks))
            out[rows] = _causal_attention(q[rows], keys, values)
        return out


def read_blocks(cache: KVCache, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of `blocks`, each [num_kv_heads, len(blocks) * block_size, head_dim]."""
    keys = cache.key[blocks].permute(1, 0, 2, 4, 3)
    values = cache.value[blocks].permute(1, 0, 3, 2, 4)
    return keys.flatten(1, 3), values.flatten(3).flatten(1, 2)


def _causal_attention(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`q` [rows, num_heads, head_dim] are the last rows of `keys`, `values` [heads, len, dim]."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, seq_len, _ = keys.shape
    grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("rhgd,hld->hgrl", grouped, keys).float() * head_dim**-0.5
    positions = torch.arange(seq_len - num_rows, seq_len, device=q.device)
    future = torch.arange(seq_len, device=q.device) > positions[:, None]
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1).to(q.dtype)
    return torch.einsum("hgrl,hld->rhgd", weights, values).reshape(num_rows, num_heads, head_dim)
