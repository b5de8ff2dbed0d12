"""Settings of one engine. Frozen: nothing rewrites a config after it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from qwen3_ray.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "fp8"]
Numerics = Literal["auto", "exact", "fast"]
GenerationDefaults = Literal["auto", "none"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "device": get_args(Device),
    "dtype": get_args(DType),
    "kv_cache_dtype": get_args(KVCacheDType),
    "quantization": get_args(Quantization),
    "numerics": get_args(Numerics),
    "generation_config": get_args(GenerationDefaults),
}

_STEP_TOKENS_ON_CPU, _STEP_TOKENS_ON_CUDA = 256, 2_048

DEMO_MODEL_DIR = Path(__file__).parent / "assets" / "demo-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine; every rank of it is started with the same ones.

    Raises:
        ConfigError: a value cannot work; names the field, the value and what it must be.
    """

    model_dir: Path
    """Hugging Face directory: config.json, *.safetensors, tokenizer.json."""
    tensor_parallel_size: int = 1
    device: Device = "auto"
    dtype: DType = "auto"
    """`auto`: on CPU fp16 packs with fp32 activations, on CUDA the checkpoint's dtype."""
    quantization: Quantization = "none"
    """`int8` on CPU, `fp8` on CUDA: linear weights in eight bits; `dtype` is of the others.

    `fp8` is not exact.
    """
    kv_cache_dtype: KVCacheDType = "auto"
    """`auto`: float32 on CPU, where float16 is the other choice; the model's dtype on CUDA."""
    numerics: Numerics = "auto"
    """`exact`: bits do not depend on the batch; `auto` is `exact` on CPU and `fast` on CUDA.

    On CUDA only until it is measured what being exact costs there.
    """
    max_model_len: int | None = None
    """Longest prompt plus output in tokens; None for the model's own limit."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    """Tokens in one step; None for 256 on CPU and 2,048 on CUDA, and at least `max_num_seqs`."""
    kv_cache_memory: int | None = None
    """Bytes of KV cache on each rank; None to derive it from the free memory."""
    block_size: int | None = None
    """Tokens in a KV block; None for 32 on CPU, where it must be a multiple of 16, 16 on CUDA."""
    seed: int = 0
    """Seed from which the seeds of requests without one are drawn."""
    num_threads: int | None = None
    """CPU threads of one rank; None for its share of the machine's cores."""
    skip_tokenizer_init: bool = False
    enable_prefix_caching: bool = True
    """Keep the keys and values of finished requests for prompts that begin alike."""
    num_speculative_tokens: int | None = None
    """Most tokens to guess ahead by prompt lookup.

    None for 4 in exact mode, but 0 in fast mode and where steps can be CUDA graphs.
    """
    enforce_eager: bool = False
    """On CUDA, launch all steps kernel by kernel: none is captured in a CUDA graph.

    Slower, above all for few requests; takes less memory, and starts sooner.
    """
    generation_config: GenerationDefaults = "auto"
    """`auto`: requests take what they leave open from the checkpoint's generation_config.json."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(name, getattr(self, name), f"must be one of {', '.join(choices)}")
        for name in ("tensor_parallel_size", "max_num_seqs"):
            _at_least_one(name, getattr(self, name))
        for name in (
            "max_num_batched_tokens",
            "max_model_len",
            "kv_cache_memory",
            "block_size",
            "num_threads",
        ):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if self.num_speculative_tokens is not None and not 0 <= self.num_speculative_tokens <= 16:
            raise ConfigError(
                "num_speculative_tokens", self.num_speculative_tokens, "must be from 0 to 16"
            )
        if (self.max_num_batched_tokens or self.max_num_seqs) < self.max_num_seqs:
            raise ConfigError(
                "max_num_batched_tokens",
                self.max_num_batched_tokens,
                f"must be at least max_num_seqs = {self.max_num_seqs}",
            )

    def is_exact_on(self, device_type: str) -> bool:
        """Whether exact mode is asked for on "cpu" or "cuda"."""
        return self.numerics == "exact" or (self.numerics == "auto" and device_type == "cpu")

    def num_tokens_of_a_step(self, device_type: str) -> int:
        """Most tokens in one step on "cpu" or "cuda".

        A CPU computes 256 rows nearly as fast, each, as thousands, and a step is as long as a
        running stream may have to wait.
        """
        default = _STEP_TOKENS_ON_CPU if device_type == "cpu" else _STEP_TOKENS_ON_CUDA
        return self.max_num_batched_tokens or max(default, self.max_num_seqs)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(name, value, "must be at least 1")
