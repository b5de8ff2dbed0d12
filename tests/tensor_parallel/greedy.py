"""A random model with the heads of Qwen3-4B, and what it says greedily on any number of ranks.

`python -m tests.tensor_parallel.greedy` is one of several processes that meet through gloo.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch._C import _distributed_c10d as c10d

from qwen3_ray.distributed.process_group import ProcessGroupCollectives
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import KernelChoice
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import SequenceCache, forward_step
from qwen3_ray.testing_models import engine_config

HEADS_OF_4B = ModelConfig(
    vocab_size=515,
    hidden_size=96,
    intermediate_size=192,
    num_layers=3,
    num_heads=32,
    num_kv_heads=8,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    yarn=None,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    moe=None,
    dtype="float32",
    eos_token_ids=frozenset({0}),
)
"""32 query and 8 key/value heads, and a vocabulary that no number of ranks divides."""
PROMPT = tuple(range(3, 500, 13))
NUM_STEPS = 64


class Answer(NamedTuple):
    """Of rank 0: the tokens, and all logits that they are the largest of."""

    token_ids: list[int]
    logits: torch.Tensor
    """[num_steps, vocab_size]."""


def load(model_dir: Path, tp: TPGroup, kernels: KernelChoice = "reference") -> Qwen3ForCausalLM:
    config = engine_config(model_dir, dtype="float32")
    return load_model(config, ModelConfig.from_dir(model_dir), tp, kernels=kernels)


@torch.inference_mode()
def answer(model: Qwen3ForCausalLM, num_steps: int = NUM_STEPS) -> Answer:
    """Rank 0 picks the tokens and tells them to the others, which return no logits."""
    token_ids = list(PROMPT)
    cache = SequenceCache(model, [len(PROMPT) + num_steps])
    rows: list[torch.Tensor] = []
    first = 0
    for _ in range(num_steps):
        chunk = (0, first, len(token_ids) - first)
        first = len(token_ids)
        logits = forward_step(model, cache, [token_ids], [chunk])
        next_id = torch.zeros(1, dtype=torch.int64)
        if logits is not None:
            rows.append(logits[-1])
            next_id[0] = logits[-1].argmax()
        if model.tp.collectives is not None:
            model.tp.collectives.broadcast(next_id)
        token_ids.append(int(next_id))
    return Answer(token_ids[len(PROMPT) :], torch.stack(rows) if rows else torch.empty(0))


def answer_in_process(directory: Path, rank: int, sizes: list[int], *, exact: bool) -> None:
    """Answer as one rank of each group of `sizes`; rank 0 leaves the answers in `directory`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for size in sizes:
        if rank >= size:
            continue
        store = c10d.FileStore(str(directory / f"store-{size}"), size)
        collectives = ProcessGroupCollectives.connect(
            store, rank, size, device=torch.device("cpu"), timeout_s=120, exact=exact
        )
        result = answer(load(directory / "model", TPGroup(rank, size, collectives)))
        if rank == 0:
            torch.save(tuple(result), directory / f"answer-{size}.pt")


if __name__ == "__main__":
    _, folder, own_rank, *group_sizes = sys.argv
    answer_in_process(Path(folder), int(own_rank), list(map(int, group_sizes)), exact=True)
