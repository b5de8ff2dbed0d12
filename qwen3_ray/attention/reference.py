"""Paged attention in plain torch: the oracle of every backend, and what CUDA runs without one."""

from __future__ import annotations

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache


class ReferenceAttention:
    """Gathers each sequence's blocks and attends over them at once, one sequence at a time."""

    row_invariant = False

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """See `AttentionBackend`."""
        slots = metadata.slot_mapping[: metadata.num_tokens].long()
        blocks, offsets = slots // metadata.block_size, slots % metadata.block_size
        cache.key[blocks, :, offsets] = k[: metadata.num_tokens].to(cache.key.dtype)
        cache.value[blocks, :, offsets] = v[: metadata.num_tokens].to(cache.value.dtype)

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """See `AttentionBackend`."""
        out = torch.zeros_like(q)
        starts = metadata.query_start_loc.tolist()
        for index, seq_len in enumerate(metadata.seq_lens.tolist()):
            rows = slice(starts[index], starts[index + 1])
            num_blocks = -(-seq_len // metadata.block_size)
            blocks = metadata.block_tables[index, :num_blocks].long()
            keys = _contiguous_sequence(cache.key, blocks, seq_len).to(q.dtype)
            values = _contiguous_sequence(cache.value, blocks, seq_len).to(q.dtype)
            out[rows] = _causal_attention(q[rows], keys, values)
        return out


def _contiguous_sequence(cache: torch.Tensor, blocks: torch.Tensor, seq_len: int) -> torch.Tensor:
    """[num_blocks, heads, block_size, dim] -> [heads, seq_len, dim] of one sequence."""
    gathered = cache[blocks].transpose(0, 1)
    return gathered.reshape(gathered.shape[0], -1, gathered.shape[-1])[:, :seq_len]


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
