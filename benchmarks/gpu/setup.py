"""What all stages share: the device, its ceilings, checkpoints and models of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.device import measure_ceilings
from benchmarks.gpu.sizes import Sizes
from benchmarks.limits import Machine, ModelCost
from benchmarks.make_checkpoint import SHAPES, make_checkpoint
from qwen3_ray.config import DType, EngineConfig, Numerics, Quantization
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import KernelChoice
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import SequenceCache


@dataclass(slots=True)
class Checkpoints:
    """Made on demand; those that another process left complete are taken as they are."""

    device: torch.device
    max_shard_bytes: int
    directory: Path

    def of(self, shape: str) -> Path:
        """Random bf16 weights; drawn on the device."""
        path = self.directory / shape
        if not (path / "config.json").exists():  # written last
            make_checkpoint(
                SHAPES[shape], path, max_shard_bytes=self.max_shard_bytes, device=self.device
            )
        return path


@dataclass(slots=True, kw_only=True)
class Setup:
    """One run's."""

    device: torch.device
    kernels: KernelChoice
    sizes: Sizes
    checkpoints: Checkpoints
    _ceilings: Machine | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether times mean anything."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> DType:
        """Of models: plain torch is served on a CPU in float32 alone."""
        return "bfloat16" if self.is_gpu or self.kernels == "triton" else "float32"

    @property
    def ceilings(self) -> Machine:
        """Measured once in a run."""
        if self._ceilings is None:
            sizes = self.sizes
            self._ceilings = measure_ceilings(
                self.device,
                num_bytes=sizes.copy_bytes,
                matrix_size=sizes.matrix_size,
                budget_s=sizes.seconds_a_case,
            )
        return self._ceilings

    def config(self, shape: str) -> ModelConfig:
        """Of a shape."""
        return ModelConfig.from_dir(self.checkpoints.of(shape))

    def cost(self, shape: str) -> ModelCost:
        """Of a shape."""
        return ModelCost.of_config(self.config(shape))

    def load(
        self,
        shape: str,
        *,
        numerics: Numerics,
        dtype: DType | None = None,
        quantization: Quantization = "none",
        tp: TPGroup | None = None,
        kernels: KernelChoice | None = None,
    ) -> Qwen3ForCausalLM:
        """Our model on the device; of one rank unless `tp` says otherwise."""
        config = EngineConfig(
            model_dir=self.checkpoints.of(shape),
            dtype=dtype or self.dtype,
            numerics=numerics,
            quantization=quantization,
        )
        return load_model(
            config,
            self.config(shape),
            tp or TPGroup.single(),
            device=self.device,
            kernels=kernels or self.kernels,
        )

    def cache(
        self, model: Qwen3ForCausalLM, lens: Sequence[int], dtype: torch.dtype | None = None
    ) -> SequenceCache:
        """Room for sequences of these lengths, in the models' dtype."""
        kv_dtype = dtype or getattr(torch, self.dtype)
        return SequenceCache(model, lens, dtype=kv_dtype, block_size=self.sizes.block_size)
