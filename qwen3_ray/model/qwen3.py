"""The Qwen3 forward pass of one rank, and the parts of its dense layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from qwen3_ray.layers.kernels import Kernels
from qwen3_ray.layers.layer_stack import DenseLayer, DenseStack, LayerStack
from qwen3_ray.layers.linear import ColumnParallelLinear, Matrix, RowParallelLinear
from qwen3_ray.layers.rotary import QKNorm
from qwen3_ray.model.model_config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Weight [hidden_size] and epsilon of one RMSNorm."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention of one layer: this rank's query heads and their key/value heads."""

    qkv_proj: ColumnParallelLinear
    o_proj: RowParallelLinear
    norm: QKNorm
    num_kv_heads: int
    kernels: Kernels

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: KVCache,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """[num_rows, hidden_size] -> the same, summed over the ranks."""
        qkv = self.qkv_proj.forward(x)
        q = self.kernels.qk_norm_rope_write(
            qkv,
            positions,
            self.norm,
            cos_sin,
            self.num_kv_heads,
            cache=cache,
            metadata=metadata,
        )
        return self.o_proj.forward(self.kernels.attention.attend(q, cache, metadata).flatten(1))


class FeedForward(Protocol):
    """What follows attention in a layer: a dense MLP, or experts."""

    def forward(self, x: torch.Tensor, /) -> torch.Tensor:
        """[num_rows, hidden_size] -> the same, summed over the ranks by one all-reduce."""

    def matrices(self) -> Iterator[Matrix]:
        """All linear weights, but for those that the kernels keep themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MLP:
    """SwiGLU of one dense layer."""

    gate_up_proj: ColumnParallelLinear
    down_proj: RowParallelLinear
    kernels: Kernels

    def forward(self, x: torch.Tensor, /) -> torch.Tensor:
        """See `FeedForward`."""
        return self.down_proj.forward(self.kernels.silu_and_mul(self.gate_up_proj.forward(x)))

    def matrices(self) -> Iterator[Matrix]:
        """See `FeedForward`."""
        yield self.gate_up_proj.matrix
        yield self.down_proj.matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """`x += attention(norm(x))`, `x += mlp(norm(x))`, each sum fused with the norm after it."""

    input_norm: Norm
    attention: Attention
    post_attention_norm: Norm
    mlp: FeedForward

    def dense(self) -> DenseLayer | None:
        """The weights of a layer that has no experts."""
        if not isinstance(self.mlp, MLP):
            return None
        return DenseLayer(
            input_norm=self.input_norm.weight,
            qkv_proj=self.attention.qkv_proj.matrix,
            qk_norm=self.attention.norm,
            o_proj=self.attention.o_proj.matrix,
            post_norm=self.post_attention_norm.weight,
            gate_up_proj=self.mlp.gate_up_proj.matrix,
            down_proj=self.mlp.down_proj.matrix,
        )


class Qwen3ForCausalLM:
    """One rank's share of a Qwen3 model: built complete by `load_model`, never changed."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TPGroup,
        *,
        embedding: VocabParallelEmbedding,
        layers: Sequence[DecoderLayer],
        final_norm: Norm,
        head: VocabParallelHead,
        cos_sin: torch.Tensor,
        kernels: Kernels,
        num_bytes_read: int,
        fuse: bool = True,
    ) -> None:
        self.config = config
        self.tp = tp
        self.device = cos_sin.device
        self.num_bytes_read = num_bytes_read
        """Bytes of tensor data that this rank read from the checkpoint."""
        self._embedding = embedding
        self._layers = tuple(layers)
        self._final_norm = final_norm
        self._head = head
        self._cos_sin = cos_sin
        self._kernels = kernels
        self._stack = self._fused() if fuse else None

    @property
    def is_fused(self) -> bool:
        """Whether all layers run in one call."""
        return self._stack is not None

    @property
    def kv_panels(self) -> bool:
        """Whether its KV caches lie in panels; see `AttentionBackend`."""
        return self._kernels.attention.panels

    @property
    def can_capture(self) -> bool:
        """Whether CUDA graphs can hold a step: on CUDA, if nothing in it waits for the device."""
        return self.device.type == "cuda" and self._kernels.can_capture and self.tp.can_capture

    @property
    def kernel_names(self) -> str:
        """What computes here ("fp16-panels+numba", ...), for the numerics fingerprint."""
        return "+".join([*sorted({matrix.name for matrix in self.matrices()}), self._kernels.name])

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_caches: Sequence[KVCache],
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """int32 ids and positions, each [num_rows] -> normed hidden states [num_rows, hidden_size].

        2 all-reduces a layer and 1 for the embedding. Writes this step's keys and values.
        """
        delta = self._embedding.forward(input_ids)
        run = self._one_by_one if self._stack is None else self._stack.forward
        delta, residual = run(delta, positions, kv_caches, metadata)
        norm = self._final_norm
        return self._kernels.add_rms_norm(delta, residual, norm.weight, norm.eps)

    def _one_by_one(
        self,
        delta: torch.Tensor,
        positions: torch.Tensor,
        kv_caches: Sequence[KVCache],
        metadata: AttentionMetadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LayerStack.forward`."""
        add_norm = self._kernels.add_rms_norm
        residual = torch.zeros_like(delta)
        for layer, cache in zip(self._layers, kv_caches, strict=True):
            norm = layer.input_norm
            x = add_norm(delta, residual, norm.weight, norm.eps)
            delta = layer.attention.forward(x, positions, self._cos_sin, cache, metadata)
            norm = layer.post_attention_norm
            delta = layer.mlp.forward(add_norm(delta, residual, norm.weight, norm.eps))
        return delta, residual

    def _fused(self) -> LayerStack | None:
        """All layers in one call, if all are dense and the kernels can."""
        dense = [layer.dense() for layer in self._layers]
        if not all(dense):
            return None
        return self._kernels.fuse(
            DenseStack(
                [layer for layer in dense if layer is not None],
                self._layers[0].attention.num_kv_heads,
                self._cos_sin,
                self.tp,
            )
        )

    def shortened(self) -> Qwen3ForCausalLM:
        """The same weights with the first layer of each kind: a step takes as much memory in it."""
        kinds = {type(layer.mlp): layer for layer in reversed(self._layers)}
        return self._with(list(kinds.values()), fuse=self.is_fused)

    def unfused(self) -> Qwen3ForCausalLM:
        """The same weights and bits, the kernels called one by one: in parts that can be timed."""
        return self._with(self._layers, fuse=False)

    def _with(self, layers: Sequence[DecoderLayer], *, fuse: bool) -> Qwen3ForCausalLM:
        return Qwen3ForCausalLM(
            self.config,
            self.tp,
            embedding=self._embedding,
            layers=layers,
            final_norm=self._final_norm,
            head=self._head,
            cos_sin=self._cos_sin,
            kernels=self._kernels,
            num_bytes_read=self.num_bytes_read,
            fuse=fuse,
        )

    @property
    def num_layers(self) -> int:
        """Layers that `forward` wants a KV cache for."""
        return len(self._layers)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """[num_rows, hidden_size] -> float32 logits [num_rows, vocab_size] on rank 0, else None."""
        return self._head.forward(hidden)

    def compute_shard_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> float32 logits [num_rows, shard_size] of this rank's ids.

        Those of rank `i` begin with id `i * shard_size`; the last may be beyond the vocabulary.
        """
        return self._head.shard(hidden)

    @property
    def exact(self) -> bool:
        """Whether a row's bits do not depend on what is computed with it, nor on chunks."""
        invariant = all(matrix.row_invariant for matrix in self.matrices())
        return invariant and self._kernels.row_invariant and self.tp.exact

    def matrices(self) -> Iterator[Matrix]:
        """All linear weights, the output head last."""
        for layer in self._layers:
            yield layer.attention.qkv_proj.matrix
            yield layer.attention.o_proj.matrix
            yield from layer.mlp.matrices()
        yield self._head.matrix
