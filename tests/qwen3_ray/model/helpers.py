from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import KernelChoice, load_model
from qwen3_ray.testing_models import engine_config

Checkpoint = Callable[[str, str], Path]
OracleLogits = Callable[[Path, list[int]], torch.Tensor]

FP32_BOUND = 1e-5
PACKED_BOUND = 1e-4
"""Largest logit difference over the largest logit, against transformers."""


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
