"""Token embedding and output head, both split along the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.linear import Matrix


@dataclass(frozen=True, slots=True)
class VocabParallelEmbedding:
    """Rows of the embedding table; each rank holds a range of ids and adds zeros for the others."""

    table: torch.Tensor
    """[rows_shard, hidden_size], in the checkpoint's dtype: only looked-up rows are widened.

    It may lie in a mapped file, whose pages are read as they are looked up. At least one row.
    """
    first_id: int
    dtype: torch.dtype
    tp: TPGroup

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_rows] ids -> [num_rows, hidden_size], the same on every rank."""
        local = input_ids - self.first_id
        foreign = (local < 0) | (local >= self.table.shape[0])
        rows = F.embedding(local.masked_fill(foreign, 0), self.table).to(self.dtype)
        return self.tp.all_reduce(rows.masked_fill_(foreign[:, None], 0))


@dataclass(frozen=True, slots=True)
class VocabParallelHead:
    """Logits; each rank computes a range of ids, rank 0 gathers them."""

    matrix: Matrix
    vocab_size: int
    tp: TPGroup

    def forward(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """[num_rows, hidden_size] -> float32 [num_rows, vocab_size] on rank 0, None elsewhere.

        The last rank's shard may be padded beyond the vocabulary; padding is cut off.
        """
        logits = self.tp.gather(self.shard(hidden))
        return None if logits is None else logits[:, : self.vocab_size]

    def shard(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> float32 [num_rows, shard_size], of this rank's ids."""
        return self.matrix.matmul(hidden).float()
