"""From safetensors files to a model: each rank reads only the bytes that it needs.

On CPU weights are packed straight from the mapped files, and the embedding stays in its file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from qwen3_ray.config import EngineConfig, Quantization
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import ConfigError
from qwen3_ray.layers.kernels import KernelChoice, Kernels, select_kernels
from qwen3_ray.layers.linear import MatrixFormat, Packer
from qwen3_ray.model.model_builder import ModelBuilder
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.shard import Shard
from qwen3_ray.model.weight_reader import WeightReader, weights_manifest

logger = logging.getLogger(__name__)

__all__ = ["KernelChoice", "load_model", "weights_manifest"]


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
        engine_config: model_dir, dtype, quantization, kv_cache_dtype, numerics and max_model_len
            are read.
        model_config: what config.json said.
        tp: this rank's group; no collective is called here.
        on_progress: called with (bytes done, bytes in all) of this rank's tensors.
        device: where the model lives; None for the CPU.
        kernels: see `select_kernels`.

    Raises:
        CheckpointError: a file or tensor is missing, damaged or does not fit `model_config`.
        ConfigError: dtype, quantization, kv_cache_dtype or tensor_parallel_size cannot work.
    """
    model_config.check_tensor_parallel(tp.size)
    device = device or torch.device("cpu")
    chosen = select_kernels(kernels, device, exact=engine_config.is_exact_on(device.type))
    matrices = _matrix_format(engine_config, model_config, device, chosen)
    builder = ModelBuilder(
        config=model_config,
        tp=tp,
        shard=Shard.of(model_config, tp.rank, tp.size),
        reader=WeightReader(engine_config.model_dir, model_config),
        matrices=matrices,
        kernels=chosen,
    )
    model = builder.build(
        model_config.resolve_max_model_len(engine_config.max_model_len),
        on_progress or (lambda _done, _total: None),
    )
    if engine_config.dtype == "auto":
        _log_wide(model)
    return model


def _log_wide(model: Qwen3ForCausalLM) -> None:
    names = [matrix.name for matrix in model.matrices()]
    num_wide = names.count("fp32-panels")
    if num_wide:
        logger.warning(
            "%d of %d linear weights do not fit fp16: they stay fp32, at twice the memory",
            num_wide,
            len(names),
        )


def _matrix_format(
    engine_config: EngineConfig,
    model_config: ModelConfig,
    device: torch.device,
    kernels: Kernels,
) -> MatrixFormat:
    dtype = _activation_dtype(engine_config, model_config, device, kernels)
    return MatrixFormat(
        dtype,
        device,
        kernels.packer(halves=engine_config.dtype == "auto", dtype=dtype, device=device),
        _quantizer(engine_config.quantization, device, kernels),
    )


def _activation_dtype(
    engine_config: EngineConfig,
    model_config: ModelConfig,
    device: torch.device,
    kernels: Kernels,
) -> torch.dtype:
    dtype, kv_dtype = engine_config.dtype, engine_config.kv_cache_dtype
    if device.type != "cpu":
        return getattr(torch, model_config.dtype if dtype == "auto" else dtype)
    if not kernels.float32_only:  # a GPU's, interpreted, or plain torch
        return torch.float32 if dtype == "auto" else getattr(torch, dtype)
    if dtype not in {"auto", "float32"}:
        raise ConfigError(
            "dtype",
            dtype,
            "on CPU only auto (fp16 weights, fp32 activations) and float32 are served: CPUs "
            "without 16-bit units compute 16-bit activations many times slower",
        )
    if kv_dtype == "bfloat16":
        raise ConfigError(
            "kv_cache_dtype", kv_dtype, "on CPU only auto, float32 and float16 are served"
        )
    return torch.float32


def _quantizer(quantization: Quantization, device: torch.device, kernels: Kernels) -> Packer | None:
    if quantization == "none":
        return None
    quantize = kernels.quantizer(quantization, device)
    if quantize is None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(
            "quantization",
            quantization,
            "int8 weights are for the CPU's kernels, fp8 weights for Triton's on CUDA devices of "
            f"compute capability 8.9 and above: those here are {kernels.name}, on {name}",
        )
    return quantize
