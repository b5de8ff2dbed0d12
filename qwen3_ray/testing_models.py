"""For tests, ours and yours: small checkpoints, thread ranks and whole forward passes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch._C import _distributed_c10d as c10d

from qwen3_ray.attention.base import AttentionMetadata, KVCache, allocate_kv_caches
from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.row_plan import RowPlan
from qwen3_ray.layers.yarn import YarnScaling, default_attention_factor
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weight_reader import tensor_shapes

BLOCK_SIZE = 32
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
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_json(config, old_keys=old_keys)))
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        drawn = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.3 * drawn if len(shape) == 1 else std * drawn).to(dtype)
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
    return style | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
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


@dataclass(frozen=True, slots=True)
class CountingTPGroup(TPGroup):
    """A group that counts its collectives by name."""

    counts: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(group: TPGroup) -> CountingTPGroup:
        """`group`, counting."""
        return CountingTPGroup(group.rank, group.size, group.process_group, group.exact)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `TPGroup`."""
        self.counts["all_reduce"] += 1
        return TPGroup.all_reduce(self, x)

    def gather(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        """See `TPGroup`."""
        self.counts["gather"] += 1
        return TPGroup.gather(self, x)


def run_ranks(
    size: int, body: Callable[[TPGroup], T], *, exact: bool = True, timeout_s: float = 60
) -> list[T]:
    """Run `body` in one thread for each of `size` ranks; returns their results in rank order.

    Ranks meet in memory. The first error of a rank is raised once all have ended; the others then
    wait for at most `timeout_s`.
    """
    store = c10d.HashStore()

    def rank_body(rank: int) -> T:
        group = TPGroup.rendezvous(
            store, rank, size, device=torch.device("cpu"), timeout_s=timeout_s, exact=exact
        )
        return body(group)

    with ThreadPoolExecutor(size) as executor:
        futures = [executor.submit(rank_body, rank) for rank in range(size)]
    return [future.result() for future in futures]


class SequenceCache:
    """KV blocks for a few sequences, scattered over the cache as in a busy engine."""

    def __init__(self, model: Qwen3ForCausalLM, max_lens: Sequence[int]) -> None:
        config, size = model.config, model.tp.size
        num_blocks = [-(-length // BLOCK_SIZE) for length in max_lens]
        self.caches: list[KVCache] = allocate_kv_caches(
            num_layers=config.num_layers,
            num_blocks=sum(num_blocks) + 1,
            block_size=BLOCK_SIZE,
            num_kv_heads=config.num_local_kv_heads(size),
            head_dim=config.head_dim,
            dtype=torch.float32,
            device=model.device,
        )
        order = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(1)) + 1
        ends = list(accumulate(num_blocks, initial=0))
        self.block_tables = [order[start:end].int() for start, end in pairwise(ends)]

    def metadata(self, chunks: Sequence[tuple[int, int, int]], num_rows: int) -> AttentionMetadata:
        """Metadata of a step of (sequence, first position, number of tokens), padded."""
        slots = torch.full((num_rows,), -1, dtype=torch.int32)
        tables = torch.zeros(len(chunks), max(map(len, self.block_tables)), dtype=torch.int32)
        starts = [0]
        for row, (sequence, start, length) in enumerate(chunks):
            table = self.block_tables[sequence]
            tables[row, : len(table)] = table
            positions = torch.arange(start, start + length)
            slots[starts[-1] : starts[-1] + length] = (
                table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
            )
            starts.append(starts[-1] + length)
        return AttentionMetadata(
            query_start_loc=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor([s + n for _, s, n in chunks], dtype=torch.int32),
            block_tables=tables,
            slot_mapping=slots,
            num_tokens=starts[-1],
            block_size=BLOCK_SIZE,
        )


def forward_step(
    model: Qwen3ForCausalLM,
    cache: SequenceCache,
    sequences: Sequence[Sequence[int]],
    chunks: Sequence[tuple[int, int, int]],
    plan: RowPlan,
) -> torch.Tensor | None:
    """One step over (sequence, first position, number of tokens); logits of all real rows."""
    num_tokens = sum(length for _, _, length in chunks)
    num_rows = plan.pad(num_tokens)
    ids, positions = torch.zeros(2, num_rows, dtype=torch.int32)
    row = 0
    for sequence, start, length in chunks:
        ids[row : row + length] = torch.tensor(sequences[sequence][start : start + length])
        positions[row : row + length] = torch.arange(start, start + length)
        row += length
    hidden = model.forward(ids, positions, cache.caches, cache.metadata(chunks, num_rows), plan)
    logits = model.compute_logits(hidden)
    return None if logits is None else logits[:num_tokens]


def forward_logits(
    model: Qwen3ForCausalLM,
    token_ids: Sequence[int],
    chunk_sizes: Sequence[int] | None = None,
    *,
    plan: RowPlan | None = None,
) -> torch.Tensor:
    """Logits at every position, [num_tokens, vocab_size], by chunks of the given sizes.

    The last size repeats; None computes all at once. Ranks other than 0 get an empty tensor.
    """
    cache = SequenceCache(model, [len(token_ids)])
    sizes = list(chunk_sizes or [len(token_ids)])
    parts, done = [], 0
    while done < len(token_ids):
        size = min(sizes.pop(0) if len(sizes) > 1 else sizes[0], len(token_ids) - done)
        logits = forward_step(model, cache, [token_ids], [(0, done, size)], plan or RowPlan())
        parts.append(torch.empty(0) if logits is None else logits)
        done += size
    return torch.cat(parts)


def engine_config(model_dir: Path, **changes: object) -> EngineConfig:
    """An EngineConfig for CPU tests."""
    config = EngineConfig(model_dir=model_dir, device="cpu")
    return replace(config, **changes)  # type: ignore[arg-type]
