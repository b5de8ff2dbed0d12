"""For tests, ours and yours: small checkpoints, and ranks in threads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch._C import _distributed_c10d as c10d

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.yarn import YarnScaling, default_attention_factor
from qwen3_ray.model.model_config import DENSE_ARCHITECTURE, MOE_ARCHITECTURE, ModelConfig
from qwen3_ray.model.moe_config import MoEConfig
from qwen3_ray.model.weight_reader import tensor_shapes

T = TypeVar("T")

TINY_MODEL = ModelConfig(
    vocab_size=259,
    hidden_size=96,
    intermediate_size=128,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    yarn=None,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    moe=None,
    dtype="bfloat16",
    eos_token_ids=frozenset({0}),
)
"""4 query heads to a key/value head, heads x head_dim != hidden, a vocabulary of odd size."""

TINY_YARN = replace(
    TINY_MODEL,
    max_position_embeddings=32,
    yarn=YarnScaling(
        factor=4.0,
        original_max_position_embeddings=32,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
        attention_factor=default_attention_factor(4.0),
    ),
)
"""Trained, so to say, on 32 tokens; its context is 128."""

TINY_MOE = replace(
    TINY_MODEL,
    num_layers=3,
    moe=MoEConfig(
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=frozenset({1}),
    ),
)
"""Experts in the first and the last layer, a dense MLP between them."""


def make_checkpoint(
    directory: Path,
    config: ModelConfig = TINY_MODEL,
    *,
    std: float = 0.5,
    seed: int = 0,
    num_shards: int = 1,
    old_keys: bool = False,
) -> Path:
    """Write a checkpoint with random weights in the Hugging Face layout; returns `directory`.

    Norm weights are random around 1, so that a missing or swapped norm shows. `std` 0.02, as
    models are initialised, makes tied models repeat their last token whatever attention does.
    Gates are smaller, so that all of a token's experts count: one that dominates hides the others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_json(config, old_keys=old_keys)))
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    tensors = {
        name: _draw(name, shape, std, generator).to(dtype)
        for name, shape in tensor_shapes(config).items()
    }
    names = sorted(tensors)
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(part, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _draw(
    name: str, shape: tuple[int, ...], std: float, generator: torch.Generator
) -> torch.Tensor:
    drawn = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.3 * drawn
    return (0.2 * std if name.endswith("mlp.gate.weight") else std) * drawn


def config_json(config: ModelConfig, *, old_keys: bool = False) -> dict[str, object]:
    """What config.json says of `config`: as transformers 5 writes it, or as version 4 did."""
    scaling = {"rope_type": "default"}
    if config.yarn:
        scaling = {"rope_type": "yarn"} | asdict(config.yarn)
    style: dict[str, object]
    if old_keys:
        style = {
            "torch_dtype": config.dtype,
            "rope_theta": config.rope_theta,
            "rope_scaling": scaling if config.yarn else None,
        }
    else:
        style = {
            "dtype": config.dtype,
            "rope_parameters": scaling | {"rope_theta": config.rope_theta},
            "layer_types": ["full_attention"] * config.num_layers,
        }
    return (
        style
        | _moe_json(config.moe, old_keys)
        | {
            "attention_bias": False,
            "eos_token_id": sorted(config.eos_token_ids),
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
            "num_attention_heads": config.num_heads,
            "num_hidden_layers": config.num_layers,
            "num_key_value_heads": config.num_kv_heads,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "use_sliding_window": False,
            "vocab_size": config.vocab_size,
        }
    )


def _moe_json(moe: MoEConfig | None, old_keys: bool) -> dict[str, object]:
    if moe is None:
        return {"architectures": [DENSE_ARCHITECTURE], "model_type": "qwen3"}
    values = asdict(moe) | {"mlp_only_layers": sorted(moe.mlp_only_layers)}
    if not old_keys:
        values["num_local_experts"] = values.pop("num_experts")
    return values | {"architectures": [MOE_ARCHITECTURE], "model_type": "qwen3_moe"}


@dataclass(frozen=True, slots=True)
class CountingTPGroup(TPGroup):
    """A group that counts its collectives by name."""

    counts: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(group: TPGroup) -> CountingTPGroup:
        """`group`, counting."""
        return CountingTPGroup(group.rank, group.size, group.collectives)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `TPGroup`."""
        self.counts["all_reduce"] += 1
        return TPGroup.all_reduce(self, x)

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `TPGroup`."""
        self.counts["gather"] += 1
        return TPGroup.gather(self, x)


def run_ranks(
    size: int, body: Callable[[TPGroup], T], *, exact: bool = True, timeout_s: float = 60
) -> list[T]:
    """Run `body` in one thread for each of `size` ranks; returns their results in rank order.

    Ranks meet in memory; unless `exact`, gloo sums as it likes, for controls. The first error of a
    rank is raised once all have ended; the others then wait for at most `timeout_s`.
    """
    store = c10d.HashStore()

    def rank_body(rank: int) -> T:
        cpu = torch.device("cpu")
        if exact:
            return body(TPGroup.rendezvous(store, rank, size, device=cpu, timeout_s=timeout_s))
        collectives = ProcessGroupCollectives.connect(
            store, rank, size, device=cpu, timeout_s=timeout_s, exact=False
        )
        return body(TPGroup(rank, size, collectives))

    with ThreadPoolExecutor(size) as executor:
        futures = [executor.submit(rank_body, rank) for rank in range(size)]
    return [future.result() for future in futures]


def engine_config(model_dir: Path, **changes: object) -> EngineConfig:
    """An EngineConfig for CPU tests."""
    config = EngineConfig(model_dir=model_dir, device="cpu")
    return replace(config, **changes)  # type: ignore[arg-type]
