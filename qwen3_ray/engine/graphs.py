"""What replays a rank's captured steps, and the memory that they take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.control import group_errors
from qwen3_ray.errors import ConfigError, EngineError
from qwen3_ray.runner.cuda_graphs import GraphLimits, GraphRunner

if TYPE_CHECKING:
    from qwen3_ray.engine.startup import Rank
    from qwen3_ray.model.qwen3 import Qwen3ForCausalLM

_DRIVER_BYTES = 768 << 10
"""That CUDA takes for the launches of one layer in one graph: about 64 KiB for each of twelve."""


def has_graphs(config: EngineConfig, model: Qwen3ForCausalLM) -> bool:
    """Whether a rank's steps are captured."""
    return model.can_capture and not config.enforce_eager


def graph_limits(
    config: EngineConfig,
    device: torch.device,
    *,
    max_model_len: int,
    block_size: int,
    num_valid_token_ids: int,
) -> GraphLimits:
    """The largest steps that are captured on `device`."""
    return GraphLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.num_tokens_of_a_step(device.type),
        max_model_len=max_model_len,
        block_size=block_size,
        num_valid_token_ids=num_valid_token_ids,
    )


def graph_bytes(num_graphs: int, num_layers: int, *, step_bytes: int) -> int:
    """What graphs take of a GPU: the memory of their largest step, and what CUDA keeps for each."""
    return step_bytes + num_graphs * num_layers * _DRIVER_BYTES


def build_graphs(rank: Rank, config: EngineConfig, num_valid_token_ids: int) -> GraphRunner | None:
    """Capture all steps of `rank`, on its stream; None if they are not to be, or cannot.

    All ranks of a group must call it, with the same settings; rank 0's `num_valid_token_ids` count.

    Raises:
        ConfigError: the GPU's memory is too small.
        EngineError: a step cannot be captured, or another rank is gone.
    """
    if not has_graphs(config, rank.model):
        return None
    # Loaded here: only this device has Triton.
    from qwen3_ray.runner import triton_advance, triton_choice  # noqa: PLC0415
    from qwen3_ray.runner.triton_shard_choice import ShardChoice  # noqa: PLC0415

    tp, control = rank.model.tp, rank.control
    limits = graph_limits(
        config,
        rank.device,
        max_model_len=rank.max_model_len,
        block_size=rank.kv_layout.block_size,
        num_valid_token_ids=control.values_of_ranks(num_valid_token_ids)[0],
    )
    with _capture_errors(config, limits):
        graphs = GraphRunner(
            rank.runner.forward,
            triton_choice.choose if tp.size == 1 else ShardChoice(tp),
            triton_advance,
            limits,
            device=rank.device,
            stream=rank.stream,
            tell=control.send_order if tp.rank == 0 else None,
        )
        graphs.warm_up()
    return graphs


@contextmanager
def _capture_errors(config: EngineConfig, limits: GraphLimits) -> Iterator[None]:
    try:
        with group_errors("steps could not be captured as CUDA graphs"):
            yield
    except EngineError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        raise ConfigError(
            "kv_cache_memory",
            config.kv_cache_memory,
            f"leaves too little of the GPU for {limits.num_graphs} CUDA graphs: lower it or "
            "--max-num-seqs, or set --enforce-eager, which does without graphs",
        ) from error
