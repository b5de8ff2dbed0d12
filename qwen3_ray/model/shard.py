"""Which rows and columns of each weight one rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3_ray.model.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of rows or columns."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Rows or columns in the range."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's share of every kind of weight, in rows of the full weight (o, down: columns)."""

    q: Span
    kv: Span
    mlp: Span
    experts: Span
    """Whole experts of each sparse layer; empty for a dense model."""
    vocab: Span
    """Without padding: it ends with the vocabulary, and may be empty."""
    first_id: int
    num_padded_ids: int
    """Rows of this rank's embedding and head: the same on every rank."""

    @classmethod
    def of(cls, config: ModelConfig, rank: int, size: int) -> Shard:
        """The share of `rank` of `size`; `config.check_tensor_parallel(size)` holds.

        Ranks beyond the key/value heads share them: each rank's query heads are of one group.
        """
        head_dim = config.head_dim
        num_heads = config.num_local_heads(size)
        num_kv_heads = config.num_local_kv_heads(size)
        first_kv_head = rank * config.num_kv_heads // size
        num_ids = -(-config.vocab_size // size)
        first_id = rank * num_ids
        num_experts = config.moe.num_experts // size if config.moe else 0
        return cls(
            q=_span(rank * num_heads * head_dim, num_heads * head_dim),
            kv=_span(first_kv_head * head_dim, num_kv_heads * head_dim),
            mlp=_span(rank * (config.intermediate_size // size), config.intermediate_size // size),
            experts=_span(rank * num_experts, num_experts),
            vocab=Span(
                min(first_id, config.vocab_size), min(first_id + num_ids, config.vocab_size)
            ),
            first_id=first_id,
            num_padded_ids=num_ids,
        )

    def num_weights(self, config: ModelConfig) -> int:
        """Elements of all tensors that this rank reads, norms and replicated ones included."""
        hidden = config.hidden_size
        layer = hidden * (2 * self.q.size + 2 * self.kv.size + 2) + 2 * config.head_dim
        mlps = config.num_dense_layers * 3 * hidden * self.mlp.size
        if config.moe:
            experts = 3 * config.moe.moe_intermediate_size * self.experts.size
            num_sparse_layers = config.num_layers - config.num_dense_layers
            mlps += num_sparse_layers * hidden * (config.moe.num_experts + experts)
        num_tables = 1 if config.tie_word_embeddings else 2
        return config.num_layers * layer + mlps + hidden * (1 + num_tables * self.vocab.size)


def _span(start: int, size: int) -> Span:
    return Span(start, start + size)
