"""Writes a Qwen3 checkpoint with random weights, for timing and memory figures.

    python -m benchmarks.make_checkpoint --shape 4b --out bench-work/4b

The shapes are those of the published models; the weights mean nothing. Tensors are made and written
shard by shard, so that the process needs about one shard of memory. Without `--tokenizer` the
checkpoint serves token ids.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch
from safetensors.torch import save_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FILL_ROWS = 4_096
"""Rows drawn at a time: bounds the fp32 scratch beside a large bf16 tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Dimensions of one model of the family.

    Says itself which tensors a checkpoint has: what is checked against it must not be its source.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    vocab_size: int = 151_936
    tied: bool = True
    eos_token_id: int = 151_643

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in file order; linear weights are [out, in]."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (self.hidden_size,)
            yield f"{prefix}.self_attn.q_proj.weight", (q_size, self.hidden_size)
            yield f"{prefix}.self_attn.k_proj.weight", (kv_size, self.hidden_size)
            yield f"{prefix}.self_attn.v_proj.weight", (kv_size, self.hidden_size)
            yield f"{prefix}.self_attn.o_proj.weight", (self.hidden_size, q_size)
            yield f"{prefix}.self_attn.q_norm.weight", (self.head_dim,)
            yield f"{prefix}.self_attn.k_norm.weight", (self.head_dim,)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden_size,)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate_size, self.hidden_size)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate_size, self.hidden_size)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden_size, self.intermediate_size)
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)

    def config(self, dtype: str) -> dict[str, object]:
        """What config.json says of a model of this shape."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "torch_dtype": dtype,
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 32_768,
            "rope_theta": 1_000_000,
            "rope_scaling": None,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "bos_token_id": self.eos_token_id,
            "eos_token_id": self.eos_token_id,
        }


SHAPES = {
    "tiny": Shape(
        num_layers=2,
        hidden_size=64,
        intermediate_size=192,
        num_heads=8,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=1_024,
        eos_token_id=1,
    ),
    "0.6b": Shape(
        num_layers=28, hidden_size=1_024, intermediate_size=3_072, num_heads=16, num_kv_heads=8
    ),
    "1.7b": Shape(
        num_layers=28, hidden_size=2_048, intermediate_size=6_144, num_heads=16, num_kv_heads=8
    ),
    "4b-2layer": Shape(
        num_layers=2, hidden_size=2_560, intermediate_size=9_728, num_heads=32, num_kv_heads=8
    ),
    "4b": Shape(
        num_layers=36, hidden_size=2_560, intermediate_size=9_728, num_heads=32, num_kv_heads=8
    ),
    "8b": Shape(
        num_layers=36,
        hidden_size=4_096,
        intermediate_size=12_288,
        num_heads=32,
        num_kv_heads=8,
        tied=False,
    ),
}


def make_checkpoint(
    shape: Shape,
    out: Path,
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 1 << 30,
    seed: int = 0,
    tokenizer_dir: Path | None = None,
    device: torch.device | None = None,
) -> None:
    """Write a checkpoint in Hugging Face layout to `out`; config.json last, as the sign of success.

    A shard holds at most `max_shard_bytes`, unless one tensor alone is larger. Numbers are drawn on
    `device`, None for the CPU; devices of other kinds draw others.
    """
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        for name in TOKENIZER_FILES:
            shutil.copy(tokenizer_dir / name, out)
    generator = torch.Generator(device or torch.device("cpu")).manual_seed(seed)
    _write_shards(shape, out, getattr(torch, dtype), max_shard_bytes, generator)
    ids: dict[str, object] = {
        "bos_token_id": shape.eos_token_id,
        "eos_token_id": shape.eos_token_id,
    }
    _write_json(out / "generation_config.json", ids)
    _write_json(out / "config.json", shape.config(dtype))


def _write_shards(
    shape: Shape, out: Path, dtype: torch.dtype, max_shard_bytes: int, generator: torch.Generator
) -> None:
    sizes = dict(shape.tensors())
    shards = _plan_shards(sizes, dtype.itemsize, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(sizes[name], dtype, generator) for name in names}
        save_file(tensors, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total_size = sum(_num_elements(size) for size in sizes.values()) * dtype.itemsize
    _write_json(
        out / "model.safetensors.index.json",
        {"metadata": {"total_size": total_size}, "weight_map": weight_map},
    )


def _plan_shards(
    sizes: dict[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        num_bytes = _num_elements(size) * itemsize
        if shards[-1] and filled + num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes
    return shards


def _num_elements(size: tuple[int, ...]) -> int:
    return torch.Size(size).numel()


def _random(size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Norms near one, so that a missing one changes the output; all else as at initialisation."""
    mean, std = (1.0, 0.1) if len(size) == 1 else (0.0, 0.02)
    tensor = torch.empty(size, dtype=dtype)
    for start in range(0, size[0], FILL_ROWS):
        rows = tensor[start : start + FILL_ROWS]
        drawn = torch.empty(rows.shape, device=generator.device)
        rows.copy_(drawn.normal_(mean, std, generator=generator))
    return tensor


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--max-shard-bytes", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="directory with tokenizer.json")
    options = parser.parse_args()
    make_checkpoint(
        SHAPES[options.shape],
        options.out,
        dtype=options.dtype,
        max_shard_bytes=options.max_shard_bytes,
        seed=options.seed,
        tokenizer_dir=options.tokenizer,
    )
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
