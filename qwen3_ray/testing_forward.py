"""For tests, ours and yours: whole forward passes of one rank, by any chunks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache, allocate_kv_caches
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM

BLOCK_SIZE = 32


class SequenceCache:
    """KV blocks for a few sequences, scattered over the cache as in a busy engine."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        max_lens: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        config, size = model.config, model.tp.size
        self._device, self._block_size = model.device, block_size
        num_blocks = [-(-length // block_size) for length in max_lens]
        self.caches: list[KVCache] = allocate_kv_caches(
            num_layers=config.num_layers,
            num_blocks=sum(num_blocks) + 1,
            block_size=block_size,
            num_kv_heads=config.num_local_kv_heads(size),
            head_dim=config.head_dim,
            dtype=dtype,
            device=model.device,
            panels=model.kv_panels,
        )
        order = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(1)) + 1
        ends = list(accumulate(num_blocks, initial=0))
        self.block_tables = [order[start:end].int() for start, end in pairwise(ends)]

    def metadata(self, chunks: Sequence[tuple[int, int, int]]) -> AttentionMetadata:
        """Metadata of a step of (sequence, first position, number of tokens)."""
        size = self._block_size
        slots: list[torch.Tensor] = []
        tables = torch.zeros(len(chunks), max(map(len, self.block_tables)), dtype=torch.int32)
        starts = [0]
        for row, (sequence, start, length) in enumerate(chunks):
            table = self.block_tables[sequence]
            tables[row, : len(table)] = table
            positions = torch.arange(start, start + length)
            slots.append(table[positions // size] * size + positions % size)
            starts.append(starts[-1] + length)
        return AttentionMetadata(
            query_start_loc=self._int32s(starts),
            seq_lens=self._int32s([start + length for _, start, length in chunks]),
            block_tables=tables.to(self._device),
            slot_mapping=torch.cat(slots).int().to(self._device),
            block_size=size,
        )

    def _int32s(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._device)


def forward_step(
    model: Qwen3ForCausalLM,
    cache: SequenceCache,
    sequences: Sequence[Sequence[int]],
    chunks: Sequence[tuple[int, int, int]],
) -> torch.Tensor | None:
    """One step over (sequence, first position, number of tokens); logits of all rows."""
    num_tokens = sum(length for _, _, length in chunks)
    ids, positions = torch.zeros(2, num_tokens, dtype=torch.int32)
    row = 0
    for sequence, start, length in chunks:
        ids[row : row + length] = torch.tensor(sequences[sequence][start : start + length])
        positions[row : row + length] = torch.arange(start, start + length)
        row += length
    ids, positions = ids.to(model.device), positions.to(model.device)
    hidden = model.forward(ids, positions, cache.caches, cache.metadata(chunks))
    return model.compute_logits(hidden)


def forward_logits(
    model: Qwen3ForCausalLM,
    token_ids: Sequence[int],
    chunk_sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """Logits at every position, [num_tokens, vocab_size], by chunks of the given sizes.

    The last size repeats; None computes all at once. Ranks other than 0 get an empty tensor.
    """
    cache = SequenceCache(model, [len(token_ids)])
    sizes = list(chunk_sizes or [len(token_ids)])
    parts, done = [], 0
    while done < len(token_ids):
        size = min(sizes.pop(0) if len(sizes) > 1 else sizes[0], len(token_ids) - done)
        logits = forward_step(model, cache, [token_ids], [(0, done, size)])
        parts.append(torch.empty(0) if logits is None else logits)
        done += size
    return torch.cat(parts)
