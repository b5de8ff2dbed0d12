"""From safetensors files to a model: each rank reads only the bytes that it needs.

On CPU weights are packed straight from the mapped files, and the embedding stays in its file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import ConfigError
from qwen3_ray.layers.kernels import KernelChoice, Kernels, select_kernels
from qwen3_ray.layers.linear import MatrixFormat
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
        engine_config: model_dir, dtype, quantization, kv_cache_dtype and max_model_len are
            read.
        model_config: what config.json said.
        tp: this rank's group; no collective is called here.
        on_progress: called with (bytes done, bytes in all) of this rank's tensors.
        device: where the model lives; None for the CPU.
        kernels: `reference` is plain torch; `auto` is numba on CPU, reference on CUDA.

    Raises:
        CheckpointError: a file or tensor is missing, damaged or does not fit `model_config`.
        ConfigError: dtype, quantization, kv_cache_dtype or tensor_parallel_size cannot work.
    """
    model_config.check_tensor_parallel(tp.size)
    device = device or torch.device("cpu")
    chosen = select_kernels(kernels, device)
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
    dtype, kv_dtype = engine_config.dtype, engine_config.kv_cache_dtype
    quantize = kernels.quantizer() if engine_config.quantization == "int8" else None
    if engine_config.quantization != "none" and quantize is None:
        raise ConfigError(
            "quantization",
            engine_config.quantization,
            f"int8 weights are for the CPU's kernels: those here are {kernels.name}, "
            f"on {device.type}",
        )
    if device.type != "cpu":
        name = model_config.dtype if dtype == "auto" else dtype
        return MatrixFormat(getattr(torch, name), device)
    if dtype not in {"auto", "float32"}:
        raise ConfigError(
            "dtype",
            dtype,
            "on CPU only auto (fp16 weights, fp32 activations) and float32 are served: CPUs "
            "without 16-bit units compute 16-bit activations many times slower",
        )
    if kv_dtype not in {"auto", "float32"}:
        raise ConfigError("kv_cache_dtype", kv_dtype, "on CPU only auto and float32 are served")
    return MatrixFormat(torch.float32, device, kernels.packer(halves=dtype == "auto"), quantize)
