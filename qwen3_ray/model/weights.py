"""From safetensors files to a model: each rank reads only the bytes that it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import ConfigError
from qwen3_ray.layers import fbgemm
from qwen3_ray.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from qwen3_ray.layers.kernels import KernelChoice, Kernels, select_kernels
from qwen3_ray.layers.linear import ColumnParallelLinear, MatrixFormat, RowParallelLinear
from qwen3_ray.layers.rotary import QKNorm, build_cos_sin
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import MLP, Attention, DecoderLayer, Norm, Qwen3ForCausalLM
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
        engine_config: model_dir, dtype, kv_cache_dtype and max_model_len are read.
        model_config: what config.json said.
        tp: this rank's group; no collective is called here.
        on_progress: called with (bytes done, bytes in all) of this rank's tensors.
        device: where the model lives; None for the CPU.
        kernels: `reference` is plain torch; `auto` is numba on CPU, reference on CUDA.

    Raises:
        CheckpointError: a file or tensor is missing, damaged or does not fit `model_config`.
        ConfigError: dtype, kv_cache_dtype or tensor_parallel_size cannot work.
    """
    model_config.check_tensor_parallel(tp.size)
    device = device or torch.device("cpu")
    with WeightReader(engine_config.model_dir, model_config) as reader:
        builder = _Builder(
            config=model_config,
            tp=tp,
            shard=Shard.of(model_config, tp.rank, tp.size),
            reader=reader,
            matrices=_matrix_format(engine_config, model_config, device),
            kernels=select_kernels(kernels, device),
        )
        model = builder.build(
            model_config.resolve_max_model_len(engine_config.max_model_len),
            on_progress or (lambda _done, _total: None),
        )
    if builder.matrices.pack:
        _log_unpacked(model)
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    config: ModelConfig
    tp: TPGroup
    shard: Shard
    reader: WeightReader
    matrices: MatrixFormat
    kernels: Kernels

    def build(
        self, num_positions: int, on_progress: Callable[[int, int], None]
    ) -> Qwen3ForCausalLM:
        total = self._num_bytes()
        embedding, head = self._vocabulary()
        on_progress(self.reader.num_bytes_read, total)
        layers = []
        # Packing runs on one thread and does not hold the GIL: layers are packed side by side.
        with ThreadPoolExecutor(torch.get_num_threads()) as executor:
            for layer in executor.map(self._layer, range(self.config.num_layers)):
                layers.append(layer)
                on_progress(self.reader.num_bytes_read, total)
        final_norm = self._norm("model.norm.weight")
        on_progress(self.reader.num_bytes_read, total)
        cos_sin = build_cos_sin(
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            num_positions=num_positions,
            device=self.matrices.device,
            yarn=self.config.yarn,
        )
        return Qwen3ForCausalLM(
            self.config,
            self.tp,
            embedding=embedding,
            layers=layers,
            final_norm=final_norm,
            head=head,
            cos_sin=cos_sin,
            kernels=self.kernels,
            num_bytes_read=self.reader.num_bytes_read,
        )

    def _vocabulary(self) -> tuple[VocabParallelEmbedding, VocabParallelHead]:
        table = self._vocabulary_rows("model.embed_tokens.weight")
        tied = self.config.tie_word_embeddings
        head = table if tied else self._vocabulary_rows("lm_head.weight")
        device = self.matrices.device
        return (
            VocabParallelEmbedding(
                table.to(device), self.shard.first_id, self.matrices.dtype, self.tp
            ),
            VocabParallelHead(self.matrices.build(head), self.config.vocab_size, self.tp),
        )

    def _vocabulary_rows(self, name: str) -> torch.Tensor:
        """This rank's rows, and zeros up to the size that all ranks have."""
        rows = self.reader.rows(name, self.shard.vocab)
        padding = self.shard.num_padded_ids - rows.shape[0]
        return torch.nn.functional.pad(rows, (0, 0, 0, padding)) if padding else rows

    def _layer(self, index: int) -> DecoderLayer:
        prefix = f"model.layers.{index}"
        return DecoderLayer(
            input_norm=self._norm(f"{prefix}.input_layernorm.weight"),
            attention=self._attention(f"{prefix}.self_attn"),
            post_attention_norm=self._norm(f"{prefix}.post_attention_layernorm.weight"),
            mlp=self._mlp(f"{prefix}.mlp"),
        )

    def _attention(self, prefix: str) -> Attention:
        spans = {"q": self.shard.q, "k": self.shard.kv, "v": self.shard.kv}
        qkv = torch.cat(
            [self.reader.rows(f"{prefix}.{x}_proj.weight", span) for x, span in spans.items()]
        )
        o = self.reader.columns(f"{prefix}.o_proj.weight", self.shard.q)
        return Attention(
            qkv_proj=ColumnParallelLinear(self.matrices.build(qkv)),
            o_proj=RowParallelLinear(self.matrices.build(o), self.tp),
            norm=QKNorm(
                self._vector(f"{prefix}.q_norm.weight"),
                self._vector(f"{prefix}.k_norm.weight"),
                self.config.rms_norm_eps,
            ),
            num_kv_heads=self.shard.kv.size // self.config.head_dim,
            kernels=self.kernels,
        )

    def _mlp(self, prefix: str) -> MLP:
        gate_up = torch.cat(
            [self.reader.rows(f"{prefix}.{x}_proj.weight", self.shard.mlp) for x in ("gate", "up")]
        )
        down = self.reader.columns(f"{prefix}.down_proj.weight", self.shard.mlp)
        return MLP(
            gate_up_proj=ColumnParallelLinear(self.matrices.build(gate_up)),
            down_proj=RowParallelLinear(self.matrices.build(down), self.tp),
            kernels=self.kernels,
        )

    def _norm(self, name: str) -> Norm:
        return Norm(weight=self._vector(name), eps=self.config.rms_norm_eps)

    def _vector(self, name: str) -> torch.Tensor:
        return self.reader.whole(name).to(self.matrices.device, self.matrices.dtype)

    def _num_bytes(self) -> int:
        """Bytes of tensor data that `build` reads."""
        config, shard = self.config, self.shard
        hidden = config.hidden_size
        linear = hidden * (2 * shard.q.size + 2 * shard.kv.size + 3 * shard.mlp.size)
        layer = linear + 2 * hidden + 2 * config.head_dim
        num_tables = 1 if config.tie_word_embeddings else 2
        count = config.num_layers * layer + hidden * (1 + num_tables * shard.vocab.size)
        return count * self.reader.dtype.itemsize


def _log_unpacked(model: Qwen3ForCausalLM) -> None:
    names = [matrix.name for matrix in model.matrices()]
    num_unpacked = sum(name != fbgemm.PackedMatrix.name for name in names)
    if num_unpacked:
        logger.warning(
            "%d of %d linear weights do not fit fp16: they stay fp32, at twice the memory",
            num_unpacked,
            len(names),
        )


def _matrix_format(
    engine_config: EngineConfig, model_config: ModelConfig, device: torch.device
) -> MatrixFormat:
    dtype, kv_dtype = engine_config.dtype, engine_config.kv_cache_dtype
    if device.type != "cpu":
        name = model_config.dtype if dtype == "auto" else dtype
        return MatrixFormat(getattr(torch, name), device, pack=False)
    if dtype not in {"auto", "float32"}:
        raise ConfigError(
            "dtype",
            dtype,
            "on CPU only auto (fp16 weights, fp32 activations) and float32 are served: CPUs "
            "without 16-bit units compute 16-bit activations many times slower",
        )
    if kv_dtype not in {"auto", "float32"}:
        raise ConfigError("kv_cache_dtype", kv_dtype, "on CPU only auto and float32 are served")
    return MatrixFormat(torch.float32, device, pack=dtype == "auto" and fbgemm.is_available())
