"""What replays a rank's captured steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3_ray.config import EngineConfig
from qwen3_ray.runner.cuda_graphs import GraphLimits, GraphRunner

if TYPE_CHECKING:
    from qwen3_ray.engine.startup import Rank


def build_graphs(rank: Rank, config: EngineConfig, num_valid_token_ids: int) -> GraphRunner | None:
    """Capture all steps of `rank`, on its stream; None if its model's cannot be.

    All ranks of a group must call it, with the same settings; rank 0's `num_valid_token_ids` count.
    """
    if not rank.model.can_capture:
        return None
    # Loaded here: only this device has Triton.
    from qwen3_ray.runner import triton_advance, triton_choice  # noqa: PLC0415
    from qwen3_ray.runner.triton_shard_choice import ShardChoice  # noqa: PLC0415

    tp, control = rank.model.tp, rank.control
    limits = GraphLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.num_tokens_of_a_step(rank.device.type),
        max_model_len=rank.max_model_len,
        block_size=rank.kv_layout.block_size,
        num_valid_token_ids=control.values_of_ranks(num_valid_token_ids)[0],
    )
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
