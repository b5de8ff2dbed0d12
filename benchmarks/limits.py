"""Physical limits of a model on a machine: bytes over bandwidth, operations over their peak rate.

The two are taken to overlap perfectly, so a step takes at least the longer of them. Weights and
keys and values count two bytes each, whatever an engine really holds: who reads more is further
from the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.peers.work import Case, Work
from qwen3_ray.model.model_config import ModelConfig

WEIGHT_BYTES = 2
KV_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Best rates of one machine."""

    read_bytes_per_s: float
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """Parameters and attention of a dense model."""

    layer_params: int
    """Of the linear layers."""
    head_params: int
    attention_width: int
    """Layers x query heads x head_dim."""
    kv_values_per_token: int
    """Layers x 2 x key-value heads x head_dim."""

    @classmethod
    def of(cls, model_dir: Path) -> Self:
        """Of a checkpoint, as its config says."""
        return cls.of_config(ModelConfig.from_dir(model_dir))

    @classmethod
    def of_config(cls, config: ModelConfig) -> Self:
        """Of a model."""
        heads = 2 * config.num_heads + 2 * config.num_kv_heads
        attention = config.hidden_size * config.head_dim * heads
        mlp = 3 * config.hidden_size * config.intermediate_size
        return cls(
            layer_params=config.num_layers * (attention + mlp),
            head_params=config.vocab_size * config.hidden_size,
            attention_width=config.num_layers * config.num_heads * config.head_dim,
            kv_values_per_token=config.num_layers * 2 * config.num_kv_heads * config.head_dim,
        )

    def prefill_s(self, num_tokens: int, machine: Machine) -> float:
        """One prompt."""
        num_bytes = WEIGHT_BYTES * (self.layer_params + self.head_params)
        operations = self.prefill_operations(num_tokens)
        return max(operations / machine.flops, num_bytes / machine.read_bytes_per_s)

    def prefill_operations(self, num_tokens: int) -> float:
        """For one prompt; the head is computed once, attention is causal."""
        linear = 2 * self.layer_params * num_tokens + 2 * self.head_params
        return linear + 2 * self.attention_width * num_tokens**2

    def decode_bytes(self, num_seqs: int, context_len: float, *, kv_bytes: int = KV_BYTES) -> float:
        """Read in one step in which each sequence, `context_len` tokens long, gets one token."""
        weights = WEIGHT_BYTES * (self.layer_params + self.head_params)
        return weights + num_seqs * context_len * self.kv_values_per_token * kv_bytes

    def decode_operations(self, num_seqs: int, context_len: float) -> float:
        """Computed in such a step."""
        linear = 2 * (self.layer_params + self.head_params)
        return num_seqs * (linear + 4 * self.attention_width * context_len)

    def decode_s(self, num_seqs: int, context_len: float, machine: Machine) -> float:
        """Such a step."""
        return max(
            self.decode_bytes(num_seqs, context_len) / machine.read_bytes_per_s,
            self.decode_operations(num_seqs, context_len) / machine.flops,
        )


def limit(case: Case, work: Work, cost: ModelCost, machine: Machine) -> float:
    """Most tokens a second that a case can have; see `Sample.values`."""
    if case.kind == "prefill":
        return work.prefill_len / cost.prefill_s(work.prefill_len, machine)
    num_seqs = case.num_streams
    step_s = cost.decode_s(num_seqs, work.prompt_len + work.output_len / 2, machine)
    if case.kind == "decode":
        return num_seqs / step_s
    seconds = num_seqs * cost.prefill_s(work.prompt_len, machine) + (work.output_len - 1) * step_s
    return num_seqs * work.output_len / seconds
