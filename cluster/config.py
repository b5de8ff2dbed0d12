"""Settings of a deployment: what `qwen3-ray serve`, `serve deploy` and KubeRay all read."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qwen3_ray.config import (
    Device,
    DType,
    EngineConfig,
    GenerationDefaults,
    KVCacheDType,
    Numerics,
    Quantization,
)
from qwen3_ray.errors import ConfigError


class DeployConfig(BaseModel):
    """One typed description of a cluster. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Directory or Hugging Face id; none: demo model")
    served_model_name: str | None = Field(None, min_length=1, description="Name clients use")
    tensor_parallel_size: int | None = Field(
        None, ge=1, description="Ranks of one replica; default 1, and 2 for the demo model"
    )
    num_replicas: int | None = Field(None, ge=1, description="Fixed number of replicas")
    min_replicas: int | None = Field(None, ge=1, description="Fewest replicas when scaling")
    max_replicas: int | None = Field(None, ge=1, description="Most replicas when scaling")
    num_routers: int = Field(1, ge=1, description="Processes that face clients")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")
    http_port: int = Field(8000, ge=1, le=65535, description="Port of the HTTP API")
    grpc_port: int = Field(9000, ge=1, le=65535, description="Port of the gRPC service")
    device: Device = Field("auto", description="auto: CUDA where there are enough GPUs")
    dtype: DType = Field("auto", description="Type of weights and activations")
    quantization: Quantization = Field(
        "none",
        description="Linear weights in eight bits: int8 on CPU, fp8 on CUDA; less accurate",
    )
    kv_cache_dtype: KVCacheDType = Field("auto", description="Type of cached keys and values")
    numerics: Numerics = Field(
        "auto", description="exact: tokens do not depend on the batch; auto: exact on CPU"
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt plus output, in tokens; default: the model's"
    )
    max_num_seqs: int = Field(256, ge=1, description="Sequences in one step of a replica")
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens in one step of a replica; default: 256 on CPU, 2048 on CUDA",
    )
    kv_cache_memory: int | None = Field(
        None, ge=1, description="Bytes of KV cache on each rank; default: from the free memory"
    )
    block_size: int | None = Field(
        None,
        ge=1,
        description="Tokens in a KV block; default 32 on CPU (multiples of 16), 16 on CUDA",
    )
    enable_prefix_caching: bool = Field(
        True, description="Compute what prompts of one salt begin with alike only once"
    )
    num_speculative_tokens: int | None = Field(
        None,
        ge=0,
        le=16,
        description="Tokens to guess ahead; default 4 in exact mode on CPU, else 0",
    )
    enforce_eager: bool = Field(
        False, description="On CUDA, capture no steps in graphs: slower, less memory"
    )
    generation_config: GenerationDefaults = Field(
        "auto", description="auto: the model's own sampling defaults; none: OpenAI's"
    )
    seed: int = Field(0, description="From which the seeds of requests without one are drawn")
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of one rank; default: its share of the cores"
    )
    max_waiting_tokens: int = Field(
        262_144, ge=1, description="Prompt tokens a replica queues before it rejects"
    )
    max_waiting_requests: int = Field(
        4_096, ge=1, description="Requests a replica queues before it rejects"
    )
    orphan_grace_s: float = Field(
        10.0, gt=0, description="Seconds for which a replica runs a stream whose router is gone"
    )
    upscale_delay_s: float = Field(
        2.0, ge=0, description="How long more replicas must be needed before they start"
    )
    downscale_delay_s: float = Field(
        30.0, ge=0, description="How long fewer replicas must suffice before some stop"
    )
    target_waiting_tokens: int = Field(
        2048, ge=1, description="Waiting prompt tokens one replica should have at most"
    )

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        scaling = (self.min_replicas, self.max_replicas)
        if self.num_replicas is not None and scaling != (None, None):
            raise ValueError("num_replicas excludes min_replicas and max_replicas")
        if self.replica_range[0] > self.replica_range[1]:
            raise ValueError(
                f"min_replicas = {self.min_replicas} exceeds max_replicas = {self.max_replicas}"
            )
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.http_port == self.grpc_port:
            raise ValueError(f"http_port and grpc_port are both {self.http_port}")
        return self

    @property
    def replica_range(self) -> tuple[int, int]:
        """Fewest and most replicas; equal when their number is fixed."""
        if self.num_replicas is not None:
            return self.num_replicas, self.num_replicas
        low = self.min_replicas or 1
        return low, self.max_replicas or low

    @property
    def tp_size(self) -> int:
        """Ranks of one replica, the default applied."""
        if self.tensor_parallel_size is not None:
            return self.tensor_parallel_size
        return 2 if self.model is None else 1

    @property
    def model_name(self) -> str:
        """What clients call the model: as named, else as given, "demo" for the demo model."""
        return self.served_model_name or self.model or "demo"

    def engine_config(self, model_dir: Path) -> EngineConfig:
        """The engine's part of these settings."""
        return EngineConfig(
            model_dir=model_dir,
            tensor_parallel_size=self.tp_size,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            numerics=self.numerics,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_memory=self.kv_cache_memory,
            block_size=self.block_size,
            seed=self.seed,
            num_threads=self.num_threads,
            enable_prefix_caching=self.enable_prefix_caching,
            num_speculative_tokens=self.num_speculative_tokens,
            enforce_eager=self.enforce_eager,
            generation_config=self.generation_config,
        )


def parse_deploy_config(values: dict[str, Any]) -> DeployConfig:
    """Build a config from plain values.

    Raises:
        ConfigError: names the first bad field; for an unknown one, the nearest valid name.
    """
    try:
        return DeployConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, DeployConfig.model_fields, n=1)
            message = "unknown setting" + (f"; did you mean {near[0]!r}?" if near else "")
        raise ConfigError(field, first.get("input"), message) from None


def load_deploy_config(path: Path, overrides: dict[str, Any]) -> DeployConfig:
    """Read a YAML file; `overrides` (command-line options) win over it."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("config", str(path), f"cannot be read: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError("config", str(path), "must hold a mapping of settings")
    return parse_deploy_config({**(values or {}), **overrides})
