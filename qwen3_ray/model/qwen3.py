"""The dense Qwen3 forward pass of one rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.config import Numerics
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.row_plan import RowPlan
from qwen3_ray.model.model_config import ModelConfig


class Qwen3ForCausalLM:
    """One rank's share of a dense Qwen3 model: built complete by `load_model`, never changed."""

    config: ModelConfig
    tp: TPGroup
    device: torch.device
    num_bytes_read: int
    """Bytes of tensor data that this rank read from the checkpoint."""
    kernel_names: str
    """What computes here ("fp16-packs+numba", ...), for the numerics fingerprint."""

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_caches: Sequence[KVCache],
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """int32 ids and positions, each [num_rows] -> normed hidden states [num_rows, hidden].

        2 all-reduces a layer and 1 for the embedding. Writes this step's keys and values.
        """
        raise NotImplementedError

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """[num_rows, hidden] -> float32 logits [num_rows, vocab_size] on rank 0, None elsewhere."""
        raise NotImplementedError

    def find_row_plan(self, numerics: Numerics, max_rows: int) -> RowPlan:
        """Test this rank's linears (a collective over the ranks; run in the step thread).

        `exact` of the plan is False for `fast` and where some kernel is not row-invariant.
        """
        raise NotImplementedError
