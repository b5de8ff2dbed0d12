"""Gives slices of tensors, in place: the files of a checkpoint are mapped, and read by use.

A mapping holds its file: deleting or replacing the file changes nothing. Shortening it in place
ends the process at the next use of what was cut off (SIGBUS); writing to it changes the weights.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen3_ray.errors import CheckpointError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.safetensors_header import StoredTensor, read_checkpoint
from qwen3_ray.model.shard import Span

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_SAMPLE_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a tensor, where it lies in its mapped file."""

    tensor: torch.Tensor
    """Rows may lie apart. It keeps the mapping; nothing that is written to it reaches the file."""
    stored: StoredTensor
    _mapping: mmap.mmap

    def release(self) -> None:
        """Give back the memory of the whole tensor's pages; what is used again is read again."""
        start = self.stored.offset // mmap.PAGESIZE * mmap.PAGESIZE
        size = self.stored.offset + self.stored.num_bytes - start
        if size > 0:
            self._mapping.madvise(mmap.MADV_DONTNEED, start, size)


class WeightReader:
    """The tensors of one checkpoint, checked against the config when opened.

    Whether elements are finite is for their users to see: they look at all of them anyway.

    Raises:
        CheckpointError: a tensor is missing, has another shape or dtype than the config implies,
            or is one that this architecture does not have.
    """

    def __init__(self, model_dir: Path, config: ModelConfig) -> None:
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.num_bytes_read = 0
        """Bytes of tensor data in the slices given so far."""
        self._tensors = read_checkpoint(model_dir)
        _check_tensors(self._tensors, config)
        self._mappings: dict[Path, mmap.mmap] = {}
        for file in {tensor.file for tensor in self._tensors.values()}:
            with file.open("rb") as stream:
                # Private to this process, for torch wants memory that can be written to.
                self._mappings[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def whole(self, name: str) -> Slice:
        """The whole tensor."""
        return self._slice(name, self._map(self._tensors[name]))

    def rows(self, name: str, span: Span) -> Slice:
        """Rows of a 2-D tensor: one contiguous range of bytes."""
        return self._slice(name, self._map(self._tensors[name])[span.start : span.stop])

    def columns(self, name: str, span: Span) -> Slice:
        """Columns of a 2-D tensor: a range of bytes in each row."""
        return self._slice(name, self._map(self._tensors[name])[:, span.start : span.stop])

    def _slice(self, name: str, tensor: torch.Tensor) -> Slice:
        stored = self._tensors[name]
        self.num_bytes_read += tensor.nbytes
        return Slice(tensor, stored, self._mappings[stored.file])

    def _map(self, stored: StoredTensor) -> torch.Tensor:
        """The whole tensor in its mapping."""
        count = stored.num_bytes // self.dtype.itemsize
        mapping = self._mappings[stored.file]
        flat = torch.frombuffer(mapping, dtype=self.dtype, count=count, offset=stored.offset)
        return flat.reshape(stored.shape)


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
