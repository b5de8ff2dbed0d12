"""All dense layers of a model as one operation, for kernels that can do that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.linear import Matrix
from qwen3_ray.layers.rotary import QKNorm


class DenseLayer(NamedTuple):
    """The weights of one layer, this rank's share; norms are vectors [hidden_size]."""

    input_norm: torch.Tensor
    qkv_proj: Matrix
    qk_norm: QKNorm
    o_proj: Matrix
    post_norm: torch.Tensor
    gate_up_proj: Matrix
    down_proj: Matrix


class DenseStack(NamedTuple):
    """What a rank's layers, all dense and of one shape, have in common."""

    layers: Sequence[DenseLayer]
    """At least one."""
    num_kv_heads: int
    """This rank's."""
    cos_sin: torch.Tensor
    """See `rotary.build_cos_sin`."""
    tp: TPGroup
    """Whose ranks sum up what the layers give."""


class LayerStack(Protocol):
    """All layers of a model."""

    def forward(
        self,
        delta: torch.Tensor,
        positions: torch.Tensor,
        kv_caches: Sequence[KVCache],
        metadata: AttentionMetadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedded tokens [num_rows, hidden_size] -> the last layer's output, and the residual.

        The hidden states are the sum of both. Writes the step's keys and values.

        Raises:
            EngineError: another rank is gone.
        """
