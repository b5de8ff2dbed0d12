"""Reads slices of tensors: only the bytes that are asked for, by pread, checked for NaN."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import torch

from qwen3_ray.errors import CheckpointError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.safetensors_header import StoredTensor, read_checkpoint
from qwen3_ray.model.shard import Span

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_SAMPLE_BYTES = 1_024


class WeightReader:
    """The tensors of one checkpoint, checked against the config when opened. Thread-safe.

    Raises:
        CheckpointError: a tensor is missing, has another shape or dtype than the config implies,
            or is one that this architecture does not have.
    """

    def __init__(self, model_dir: Path, config: ModelConfig) -> None:
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.num_bytes_read = 0
        """Bytes of tensor data read so far."""
        self._tensors = read_checkpoint(model_dir)
        _check_tensors(self._tensors, config)
        self._lock = Lock()
        self._files: dict[Path, int] = {}
        for file in {tensor.file for tensor in self._tensors.values()}:
            self._files[file] = os.open(file, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def whole(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        stored = self._tensors[name]
        return self._read(stored, stored.shape, 0, 1, stored.num_bytes)

    def rows(self, name: str, span: Span) -> torch.Tensor:
        """Rows of a 2-D tensor: one contiguous range of bytes."""
        stored = self._tensors[name]
        row_bytes = stored.num_bytes // stored.shape[0]
        shape = (span.size, stored.shape[1])
        return self._read(stored, shape, span.start * row_bytes, 1, span.size * row_bytes)

    def columns(self, name: str, span: Span) -> torch.Tensor:
        """Columns of a 2-D tensor: a range of bytes in each row."""
        stored = self._tensors[name]
        num_rows, num_columns = stored.shape
        if span.size == num_columns:
            return self.whole(name)
        item = self.dtype.itemsize
        return self._read(
            stored, (num_rows, span.size), span.start * item, num_rows, span.size * item
        )

    def _read(
        self, stored: StoredTensor, shape: tuple[int, ...], start: int, num_runs: int, size: int
    ) -> torch.Tensor:
        """Read `num_runs` runs of `size` bytes, the first `start` bytes into the tensor."""
        tensor = torch.empty(shape, dtype=self.dtype)
        buffer = tensor.flatten().view(torch.uint8).numpy().data
        stride = stored.num_bytes // num_runs
        for run in range(num_runs):
            self._fill(
                stored,
                buffer[run * size : (run + 1) * size],
                stored.offset + start + run * stride,
            )
        with self._lock:
            self.num_bytes_read += tensor.nbytes
        if not bool(torch.isfinite(tensor).all()):
            raise stored.error("holds NaN or infinite weights")
        return tensor

    def _fill(self, stored: StoredTensor, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):  # one read gives at most 2 GiB
            count = os.preadv(self._files[stored.file], [buffer[done:]], offset + done)
            if count == 0:
                raise stored.error("the file became shorter while it was read")
            done += count


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a Qwen3 checkpoint; linear weights are [out, in]."""
    hidden, head_dim = config.hidden_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    common = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (q_size, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, q_size),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config.num_layers):
        for name, shape in (common | _mlp_shapes(config, index)).items():
            shapes[f"model.layers.{index}.{name}.weight"] = shape
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _mlp_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Of one layer's dense MLP, or of its gate and its experts, which are stored one by one."""
    hidden = config.hidden_size
    moe = config.moe_at(layer)
    if moe is None:
        return _swiglu_shapes("mlp", config.intermediate_size, hidden)
    shapes: dict[str, tuple[int, ...]] = {"mlp.gate": (moe.num_experts, hidden)}
    for expert in range(moe.num_experts):
        shapes |= _swiglu_shapes(f"mlp.experts.{expert}", moe.moe_intermediate_size, hidden)
    return shapes


def _swiglu_shapes(prefix: str, size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj": (size, hidden),
        f"{prefix}.up_proj": (size, hidden),
        f"{prefix}.down_proj": (hidden, size),
    }


def weights_manifest(model_dir: Path) -> str:
    """Hex digest that tells checkpoints apart, for the numerics fingerprint.

    Covers config.json, every tensor's name, dtype and shape, and a sample of its bytes: it reads
    about a kilobyte a tensor, so weights that differ only elsewhere have the same digest.
    """
    digest = hashlib.sha256((model_dir / "config.json").read_bytes())
    tensors = read_checkpoint(model_dir)
    for name in sorted(tensors):
        stored = tensors[name]
        digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
        with stored.file.open("rb") as stream:
            stream.seek(stored.offset + max(0, stored.num_bytes - _SAMPLE_BYTES) // 2)
            digest.update(stream.read(min(_SAMPLE_BYTES, stored.num_bytes)))
    return digest.hexdigest()


def _check_tensors(tensors: Mapping[str, StoredTensor], config: ModelConfig) -> None:
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        stored = tensors.get(name)
        if stored is None:
            raise CheckpointError("*.safetensors", "the checkpoint lacks it", tensor=name)
        if stored.shape != shape:
            raise stored.error(f"has shape {list(stored.shape)}, config.json implies {list(shape)}")
        if stored.dtype != _DTYPES[config.dtype]:
            raise stored.error(f"has dtype {stored.dtype}, config.json says {config.dtype}")
    for name, stored in tensors.items():
        if name not in expected and not _may_be_ignored(name):
            raise stored.error("no Qwen3 model of this config has such a tensor")


def _may_be_ignored(name: str) -> bool:
    """A tied head saved all the same, and the rotation frequencies of old checkpoints."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")
