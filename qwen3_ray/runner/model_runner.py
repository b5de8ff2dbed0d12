"""One forward pass on one rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.distributed.control import Int32s, StepArrays
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM


class ModelRunner:
    """Feeds step arrays to the model, over this rank's KV caches; ranks run the same steps."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        kv_caches: Sequence[KVCache],
        block_size: int,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._block_size = block_size

    @torch.inference_mode()
    def execute(self, arrays: StepArrays) -> torch.Tensor | None:
        """Compute a step: write its keys and values, return the wanted logits.

        Returns:
            [num_logits, vocab_size], float32, on rank 0; None elsewhere and when the step
            wants none.
        """
        metadata = AttentionMetadata(
            query_start_loc=self._to_device(arrays.query_start_loc),
            seq_lens=self._to_device(arrays.seq_lens),
            block_tables=self._to_device(arrays.block_tables),
            slot_mapping=self._to_device(arrays.slot_mapping),
            block_size=self._block_size,
        )
        input_ids, positions = map(self._to_device, (arrays.input_ids, arrays.positions))
        if arrays.num_logits == 0:
            self._model.forward(input_ids, positions, self._kv_caches, metadata)
            return None
        rows = self._to_device(arrays.logits_indices)
        return self._model.compute_logits(self._hidden(input_ids, positions, metadata, rows))

    @torch.inference_mode()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        logits_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        """A step whose inputs are on the device: logits of the rows named, or of all.

        Returns:
            [num_logits, shard_size], float32, of this rank's share of the vocabulary.
        """
        hidden = self._hidden(input_ids, positions, metadata, logits_indices)
        return self._model.compute_shard_logits(hidden)

    def _hidden(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        logits_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = self._model.forward(input_ids, positions, self._kv_caches, metadata)
        return hidden if logits_indices is None else hidden.index_select(0, logits_indices)

    def _to_device(self, values: Int32s) -> torch.Tensor:
        return torch.from_numpy(values).to(self._model.device)
