"""Whether a rank's steps are captured, and what replays them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3_ray.config import EngineConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.runner.cuda_graphs import GraphLimits, GraphRunner

if TYPE_CHECKING:
    from qwen3_ray.engine.startup import Rank


def has_graphs(model: Qwen3ForCausalLM) -> bool:
    """Whether steps of `model` are captured: on CUDA, of one rank, by kernels that never wait.

    Plain torch attention asks the device for lengths. Ranks of a larger group would have to be
    told of each step ahead of its ids, see docs/adr/0006-device-fed-steps.md.
    """
    return model.device.type == "cuda" and model.tp.size == 1 and "triton" in model.kernel_names


def build_graphs(rank: Rank, config: EngineConfig, num_valid_token_ids: int) -> GraphRunner | None:
    """Capture all steps of `rank`, on its stream; None where `has_graphs` is not so."""
    if not has_graphs(rank.model):
        return None
    # Loaded here: only this device has Triton.
    from qwen3_ray.runner import triton_advance, triton_choice  # noqa: PLC0415

    limits = GraphLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.num_tokens_of_a_step(rank.device.type),
        max_model_len=rank.max_model_len,
        block_size=rank.kv_layout.block_size,
        num_valid_token_ids=num_valid_token_ids,
    )
    graphs = GraphRunner(
        rank.runner.forward,
        triton_choice.choose,
        triton_advance,
        limits,
        device=rank.device,
        stream=rank.stream,
    )
    graphs.warm_up()
    return graphs
