"""Builds one rank's model from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    is_finite,
)
from qwen3_ray.layers.moe import ExpertShape, ExpertStack, Routing
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
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP, StackedMLP
from qwen3_ray.model.shard import Shard, Span
from qwen3_ray.model.weight_reader import Slice, WeightReader


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
        for index in range(self.config.num_layers):
            layers.append(self._layer(index))
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
        table = self.reader.rows("model.embed_tokens.weight", self.shard.vocab)
        if self.config.tie_word_embeddings:
            head = table
        else:
            head = self.reader.rows("lm_head.weight", self.shard.vocab)
            _check(table)
        # All ranks' heads have one size.
        num_missing = self.shard.num_padded_ids - self.shard.vocab.size
        padding = torch.zeros(num_missing, self.config.hidden_size, dtype=self.reader.dtype)
        matrix = self._matrix(head, padding=padding)
        table.release()
        rows = table.tensor if self.shard.vocab.size > 0 else padding
        return (
            VocabParallelEmbedding(
                rows.to(self.matrices.device), self.shard.first_id, self.matrices.dtype, self.tp
            ),
            VocabParallelHead(matrix, self.config.vocab_size, self.tp),
        )

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
        qkv = [self.reader.rows(f"{prefix}.{x}_proj.weight", span) for x, span in spans.items()]
        o = self.reader.columns(f"{prefix}.o_proj.weight", self.shard.q)
        return Attention(
            qkv_proj=ColumnParallelLinear(self._matrix(*qkv)),
            o_proj=RowParallelLinear(self._matrix(o), self.tp),
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
        # Small, and a change in it may send a row to other experts.
        gate = self._matrix(self.reader.whole(f"{prefix}.gate.weight"), may_quantize=False)
        routing = Routing(moe.num_experts_per_tok, moe.norm_topk_prob, span.start, span.size)
        names = [f"{prefix}.experts.{index}" for index in range(span.start, span.stop)]
        hidden_size, matrices = self.config.hidden_size, self.matrices
        stack = self.kernels.stack_experts(
            ExpertShape(routing, hidden_size, whole.size, matrices.dtype, matrices.device)
        )
        if stack is not None:
            for index, name in enumerate(names):
                self._load_expert(stack, index, name)
            return StackedMLP(gate=gate, experts=stack, tp=self.tp)
        return SparseMLP(
            gate=gate,
            experts=[Expert(*self._swiglu(name, whole)) for name in names],
            routing=routing,
            kernels=self.kernels,
            tp=self.tp,
        )

    def _load_expert(self, stack: ExpertStack, index: int, prefix: str) -> None:
        parts = [self.reader.whole(f"{prefix}.{x}_proj.weight") for x in ("gate", "up", "down")]
        gate, up, down = (part.tensor for part in parts)
        with _taking(parts):
            stack.load(index, gate, up, down)

    def _swiglu(self, prefix: str, span: Span) -> tuple[Matrix, Matrix]:
        """Gate and up projection in one, and down projection, for the columns `span` between."""
        gate_up = [self.reader.rows(f"{prefix}.{x}_proj.weight", span) for x in ("gate", "up")]
        down = self.reader.columns(f"{prefix}.down_proj.weight", span)
        return self._matrix(*gate_up), self._matrix(down)

    def _norm(self, name: str) -> Norm:
        return Norm(weight=self._vector(name), eps=self.config.rms_norm_eps)

    def _vector(self, name: str) -> torch.Tensor:
        part = self.reader.whole(name)
        _check(part)
        return part.tensor.to(self.matrices.device, self.matrices.dtype, copy=True)

    def _matrix(
        self, *parts: Slice, padding: torch.Tensor | None = None, may_quantize: bool = True
    ) -> Matrix:
        """The rows of `parts`, and of `padding`, one below the other."""
        weights = [part.tensor for part in parts] + ([] if padding is None else [padding])
        with _taking(parts):
            return self.matrices.build(*weights, may_quantize=may_quantize)


@contextmanager
def _taking(parts: Sequence[Slice]) -> Iterator[None]:
    """Takes up the weights of `parts`, whose pages are given back after it.

    Raises:
        CheckpointError: ValueError was raised within; names the part with NaN or infinity.
    """
    try:
        yield
    except ValueError:
        for part in parts:
            _check(part)
        raise
    for part in parts:
        part.release()


def _check(part: Slice) -> None:
    """Raise CheckpointError for NaN and infinity."""
    if not is_finite(part.tensor):
        raise part.stored.error("holds NaN or infinite weights")
