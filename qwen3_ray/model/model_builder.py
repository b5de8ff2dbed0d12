"""Builds one rank's model from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from qwen3_ray.layers.kernels import Kernels
from qwen3_ray.layers.linear import (
    ColumnParallelLinear,
    Matrix,
    MatrixFormat,
    RowParallelLinear,
)
from qwen3_ray.layers.moe import Routing
from qwen3_ray.layers.rotary import QKNorm, build_cos_sin
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.moe_config import MoEConfig
from qwen3_ray.model.qwen3 import (
    MLP,
    Attention,
    DecoderLayer,
    FeedForward,
    Norm,
    Qwen3ForCausalLM,
)
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP
from qwen3_ray.model.shard import Shard, Span
from qwen3_ray.model.weight_reader import WeightReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBuilder:
    """Reads one rank's share of the tensors and puts the model together."""

    config: ModelConfig
    tp: TPGroup
    shard: Shard
    reader: WeightReader
    matrices: MatrixFormat
    kernels: Kernels

    def build(
        self, num_positions: int, on_progress: Callable[[int, int], None]
    ) -> Qwen3ForCausalLM:
        """The whole model, for positions below `num_positions`; see `load_model`."""
        total = self.shard.num_weights(self.config) * self.reader.dtype.itemsize
        embedding, head = self._vocabulary()
        on_progress(self.reader.num_bytes_read, total)
        layers = []
        # Packing runs on one thread and does not hold the GIL: layers are packed side by side.
        with ThreadPoolExecutor(torch.get_num_threads()) as executor:
            for layer in executor.map(self._layer, range(self.config.num_layers)):
                layers.append(layer)
                on_progress(self.reader.num_bytes_read, total)
        final_norm = self._norm("model.norm.weight")
        on_progress(self.reader.num_bytes_read, total)
        cos_sin = build_cos_sin(
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            num_positions=num_positions,
            device=self.matrices.device,
            yarn=self.config.yarn,
        )
        return Qwen3ForCausalLM(
            self.config,
            self.tp,
            embedding=embedding,
            layers=layers,
            final_norm=final_norm,
            head=head,
            cos_sin=cos_sin,
            kernels=self.kernels,
            num_bytes_read=self.reader.num_bytes_read,
        )

    def _vocabulary(self) -> tuple[VocabParallelEmbedding, VocabParallelHead]:
        table = self._vocabulary_rows("model.embed_tokens.weight")
        tied = self.config.tie_word_embeddings
        head = table if tied else self._vocabulary_rows("lm_head.weight")
        device = self.matrices.device
        return (
            VocabParallelEmbedding(
                table.to(device), self.shard.first_id, self.matrices.dtype, self.tp
            ),
            VocabParallelHead(self.matrices.build(head), self.config.vocab_size, self.tp),
        )

    def _vocabulary_rows(self, name: str) -> torch.Tensor:
        """This rank's rows, and zeros up to the size that all ranks have."""
        rows = self.reader.rows(name, self.shard.vocab)
        padding = self.shard.num_padded_ids - rows.shape[0]
        return torch.nn.functional.pad(rows, (0, 0, 0, padding)) if padding else rows

    def _layer(self, index: int) -> DecoderLayer:
        prefix = f"model.layers.{index}"
        return DecoderLayer(
            input_norm=self._norm(f"{prefix}.input_layernorm.weight"),
            attention=self._attention(f"{prefix}.self_attn"),
            post_attention_norm=self._norm(f"{prefix}.post_attention_layernorm.weight"),
            mlp=self._feed_forward(f"{prefix}.mlp", self.config.moe_at(index)),
        )

    def _attention(self, prefix: str) -> Attention:
        spans = {"q": self.shard.q, "k": self.shard.kv, "v": self.shard.kv}
        qkv = torch.cat(
            [self.reader.rows(f"{prefix}.{x}_proj.weight", span) for x, span in spans.items()]
        )
        o = self.reader.columns(f"{prefix}.o_proj.weight", self.shard.q)
        return Attention(
            qkv_proj=ColumnParallelLinear(self.matrices.build(qkv)),
            o_proj=RowParallelLinear(self.matrices.build(o), self.tp),
            norm=QKNorm(
                self._vector(f"{prefix}.q_norm.weight"),
                self._vector(f"{prefix}.k_norm.weight"),
                self.config.rms_norm_eps,
            ),
            num_kv_heads=self.shard.kv.size // self.config.head_dim,
            kernels=self.kernels,
        )

    def _feed_forward(self, prefix: str, moe: MoEConfig | None) -> FeedForward:
        if moe is None:
            gate_up, down = self._swiglu(prefix, self.shard.mlp)
            return MLP(
                gate_up_proj=ColumnParallelLinear(gate_up),
                down_proj=RowParallelLinear(down, self.tp),
                kernels=self.kernels,
            )
        span, whole = self.shard.experts, Span(0, moe.moe_intermediate_size)
        return SparseMLP(
            gate=self.matrices.build(self.reader.whole(f"{prefix}.gate.weight")),
            experts=[
                Expert(*self._swiglu(f"{prefix}.experts.{index}", whole))
                for index in range(span.start, span.stop)
            ],
            routing=Routing(moe.num_experts_per_tok, moe.norm_topk_prob, span.start, span.size),
            kernels=self.kernels,
            tp=self.tp,
        )

    def _swiglu(self, prefix: str, span: Span) -> tuple[Matrix, Matrix]:
        """Gate and up projection in one, and down projection, for the columns `span` between."""
        gate_up = torch.cat(
            [self.reader.rows(f"{prefix}.{x}_proj.weight", span) for x in ("gate", "up")]
        )
        down = self.reader.columns(f"{prefix}.down_proj.weight", span)
        return self.matrices.build(gate_up), self.matrices.build(down)

    def _norm(self, name: str) -> Norm:
        return Norm(weight=self._vector(name), eps=self.config.rms_norm_eps)

    def _vector(self, name: str) -> torch.Tensor:
        return self.reader.whole(name).to(self.matrices.device, self.matrices.dtype)
