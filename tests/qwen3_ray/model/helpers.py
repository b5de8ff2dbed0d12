from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import KernelChoice, load_model
from qwen3_ray.testing_forward import SequenceCache, forward_step
from qwen3_ray.testing_models import engine_config

Checkpoint = Callable[[str, str], Path]
OracleLogits = Callable[[Path, list[int]], torch.Tensor]

FP32_BOUND = 1e-5
PACKED_BOUND = 1e-4
"""Largest logit difference over the largest logit, against transformers."""
VISIBLE = 100 * FP32_BOUND
"""What a mutation must change at least: far from the bound, so that neither is by chance."""


def load(
    model_dir: Path,
    tp: TPGroup | None = None,
    *,
    dtype: str = "auto",
    kernels: KernelChoice = "auto",
) -> Qwen3ForCausalLM:
    return load_model(
        engine_config(model_dir, dtype=dtype),
        ModelConfig.from_dir(model_dir),
        tp or TPGroup.single(),
        kernels=kernels,
    )


def random_ids(model_dir: Path, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    vocab_size = ModelConfig.from_dir(model_dir).vocab_size
    return torch.randint(0, vocab_size, (length,), generator=generator).tolist()


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest logit: the bounds of the tests are for this."""
    assert logits.shape == expected.shape
    return float((logits - expected).abs().max() / expected.abs().max())


def batched_logits(
    model: Qwen3ForCausalLM, sequences: list[list[int]], chunk: int
) -> list[torch.Tensor]:
    """Logits of each sequence; all advance together, sequence `i` by chunks of `chunk + i % 3`."""
    cache = SequenceCache(model, [len(ids) for ids in sequences])
    done = [0] * len(sequences)
    parts: list[list[torch.Tensor]] = [[] for _ in sequences]
    while any(d < len(ids) for d, ids in zip(done, sequences, strict=True)):
        chunks = [
            (i, done[i], min(chunk + i % 3, len(ids) - done[i]))
            for i, ids in enumerate(sequences)
            if done[i] < len(ids)
        ]
        logits = forward_step(model, cache, sequences, chunks)
        assert logits is not None
        row = 0
        for i, _, length in chunks:
            parts[i].append(logits[row : row + length])
            done[i] += length
            row += length
    return [torch.cat(part) for part in parts]


@dataclass(frozen=True, slots=True)
class ForgetfulGroup(TPGroup):
    """Drops its all-reduce number `dropped` of each forward pass of `period`."""

    period: int = 1
    dropped: int = 0
    calls: list[int] = field(default_factory=list)

    @staticmethod
    def of(tp: TPGroup, *, period: int, dropped: int) -> ForgetfulGroup:
        return ForgetfulGroup(tp.rank, tp.size, tp.collectives, period, dropped)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(self.calls))
        if self.calls[-1] % self.period == self.dropped:
            return x
        return TPGroup.all_reduce(self, x)
