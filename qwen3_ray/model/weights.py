"""From safetensors files to a model: each rank reads only the bytes that it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM

KernelChoice = Literal["auto", "reference", "numba"]


def load_model(
    engine_config: EngineConfig,
    model_config: ModelConfig,
    tp: TPGroup,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    device: torch.device | None = None,
    kernels: KernelChoice = "auto",
) -> Qwen3ForCausalLM:
    """Build this rank's share of the model from `engine_config.model_dir`.

    Args:
        engine_config: dtype, numerics and max_model_len are read.
        model_config: what config.json said.
        tp: this rank's group; no collective is called here.
        on_progress: called with (bytes done, bytes in all) of this rank's tensors.
        device: where the model lives; None for the CPU.
        kernels: `reference` is plain torch; `auto` is numba on CPU, reference on CUDA.

    Raises:
        CheckpointError: a file or tensor is missing, damaged or does not fit `model_config`.
        ConfigError: dtype or tensor_parallel_size cannot work.
    """
    raise NotImplementedError


def weights_manifest(model_dir: Path) -> str:
    """Hex digest that tells checkpoints apart, for the numerics fingerprint; reads little.

    Covers config.json, all safetensors headers and a sample of each tensor's bytes.
    """
    raise NotImplementedError
