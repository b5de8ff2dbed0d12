"""What config.json says of a Qwen3 model. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3_ray.errors import ConfigError
from qwen3_ray.layers.yarn import YarnScaling
from qwen3_ray.model.json_fields import JsonFields, read_json
from qwen3_ray.model.moe_config import MoEConfig, read_moe
from qwen3_ray.model.rope_config import read_rope

DENSE_ARCHITECTURE, MOE_ARCHITECTURE = "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
CHECKPOINT_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Architecture of one checkpoint; every field was read from its files, none is a default."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Of the dense layers."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    yarn: YarnScaling | None
    """How the rotations are stretched beyond the context of the training; None: plain RoPE."""
    max_position_embeddings: int
    """As the file says; see `context_len`."""
    tie_word_embeddings: bool
    moe: MoEConfig | None
    """Experts of the sparse layers; None for a dense model."""
    dtype: str
    """Dtype of the checkpoint's tensors: bfloat16, float16 or float32."""
    eos_token_ids: frozenset[int]
    """Ids that end an output: generation_config.json's, else config.json's; may be empty."""

    @classmethod
    def from_dir(cls, model_dir: Path) -> ModelConfig:
        """Read config.json (old and new key styles) and generation_config.json, if it is there.

        Raises:
            CheckpointError: a file is missing or damaged, a field is missing or has a value that
                this engine cannot compute.
        """
        file = model_dir / "config.json"
        fields = JsonFields(file, read_json(file))
        is_moe = _check_architecture(fields) == MOE_ARCHITECTURE
        rope_theta, yarn = read_rope(fields)
        config = cls(
            vocab_size=fields.positive_int("vocab_size"),
            hidden_size=fields.positive_int("hidden_size"),
            intermediate_size=fields.positive_int("intermediate_size"),
            num_layers=fields.positive_int("num_hidden_layers"),
            num_heads=fields.positive_int("num_attention_heads"),
            num_kv_heads=fields.positive_int("num_key_value_heads"),
            head_dim=fields.positive_int("head_dim"),
            rms_norm_eps=fields.positive_float("rms_norm_eps"),
            rope_theta=rope_theta,
            yarn=yarn,
            max_position_embeddings=fields.positive_int("max_position_embeddings"),
            tie_word_embeddings=fields.boolean("tie_word_embeddings"),
            moe=read_moe(fields) if is_moe else None,
            dtype=_dtype(fields),
            eos_token_ids=_eos_token_ids(model_dir, fields),
        )
        _check_heads(fields, config)
        return config

    def moe_at(self, layer: int) -> MoEConfig | None:
        """The experts of layer number `layer`, from 0 on; None if it is dense."""
        return self.moe if self.moe is not None and self.moe.is_sparse(layer) else None

    @property
    def num_dense_layers(self) -> int:
        """Layers with a dense MLP; 0 in the official mixtures of experts."""
        return sum(self.moe_at(layer) is None for layer in range(self.num_layers))

    def check_tensor_parallel(self, size: int) -> None:
        """Raise ConfigError unless `size` ranks can share this model's heads, MLPs and experts."""
        shared = {f"the {self.num_heads} query heads": self.num_heads}
        if self.num_dense_layers:
            shared[f"the intermediate size {self.intermediate_size}"] = self.intermediate_size
        if self.moe is not None:
            shared[f"the {self.moe.num_experts} experts"] = self.moe.num_experts
        divides_kv = self.num_kv_heads % size == 0 or size % self.num_kv_heads == 0
        if any(number % size for number in shared.values()) or not divides_kv:
            raise ConfigError(
                "tensor_parallel_size",
                size,
                f"must divide {' and '.join(shared)}, and divide the {self.num_kv_heads} "
                "key/value heads or be a multiple of them",
            )

    @property
    def context_len(self) -> int:
        """Longest prompt plus output, in tokens.

        With YaRN the context of the training times the factor, if that is more than
        `max_position_embeddings`: files differ in which of the two lengths they put there.
        """
        stretched = self.yarn.max_position_embeddings if self.yarn else 0
        return max(self.max_position_embeddings, stretched)

    def resolve_max_model_len(self, max_model_len: int | None) -> int:
        """The context to serve: `max_model_len`, or the model's own if it is None.

        Raises:
            ConfigError: it exceeds the model's, `context_len`.
        """
        longest = self.context_len
        if max_model_len is not None and max_model_len > longest:
            raise ConfigError(
                "max_model_len", max_model_len, f"the model has a context of {longest} tokens"
            )
        return max_model_len or longest

    def num_local_heads(self, size: int) -> int:
        """Query heads of one of `size` ranks."""
        return self.num_heads // size

    def num_local_kv_heads(self, size: int) -> int:
        """Key/value heads of one of `size` ranks; at least one, then shared by several ranks."""
        return max(1, self.num_kv_heads // size)


def _check_architecture(fields: JsonFields) -> str:
    """The architecture; refuses what would be computed wrongly, rather than compute it."""
    architectures = fields.required("architectures")
    known = [
        name
        for name in (DENSE_ARCHITECTURE, MOE_ARCHITECTURE)
        if isinstance(architectures, list) and name in architectures
    ]
    if len(known) != 1:
        raise fields.error(
            "architectures",
            f"is {architectures!r:.120}: only {DENSE_ARCHITECTURE} and {MOE_ARCHITECTURE} "
            "checkpoints are served",
        )
    if fields.required("hidden_act") != "silu":
        raise fields.error("hidden_act", f"must be silu, got {fields.get('hidden_act')!r:.80}")
    if fields.get("attention_bias"):
        raise fields.error("attention_bias", "is true: biased projections are not supported")
    if fields.get("use_sliding_window"):
        raise fields.error("use_sliding_window", "is true: sliding windows are not supported")
    layer_types = fields.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or set(layer_types) != {"full_attention"}
    ):
        raise fields.error("layer_types", "must all be full_attention")
    return known[0]


def _dtype(fields: JsonFields) -> str:
    value = fields.get("dtype") or fields.get("torch_dtype")
    if value is None:
        raise fields.error("dtype", "(or torch_dtype) is missing")
    if value not in CHECKPOINT_DTYPES:
        raise fields.error("dtype", f"must be one of {', '.join(CHECKPOINT_DTYPES)}, got {value!r}")
    return str(value)


def _eos_token_ids(model_dir: Path, config: JsonFields) -> frozenset[int]:
    """generation_config.json decides; chat models list more ids there than in config.json."""
    file = model_dir / "generation_config.json"
    sources = [JsonFields(file, read_json(file))] if file.exists() else []
    for fields in (*sources, config):
        value = fields.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise fields.error("eos_token_id", f"must be an id or a list of ids, got {value!r:.80}")
        return frozenset(ids)
    return frozenset()


def _check_heads(fields: JsonFields, config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise fields.error(
            "num_attention_heads",
            f"= {config.num_heads} must be a multiple of num_key_value_heads = "
            f"{config.num_kv_heads}",
        )
    if config.head_dim % 2:
        raise fields.error("head_dim", f"must be even, got {config.head_dim}")
