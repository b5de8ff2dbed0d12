"""From settings to one rank that can compute steps: threads, rendezvous, weights, KV cache."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.config import EngineConfig
from qwen3_ray.core.drafting import MAX_DECODE_ROWS
from qwen3_ray.core.token_budget import PROMPT_LOGPROB_ROWS
from qwen3_ray.distributed.control import StepControl, group_errors
from qwen3_ray.engine.graphs import graph_bytes, graph_limits, has_graphs
from qwen3_ray.engine.progress import LoadProgress, OnProgress
from qwen3_ray.engine.rendezvous import Rendezvous
from qwen3_ray.errors import ResourcesError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.runner.device_stream import DeviceStream, use_own_stream
from qwen3_ray.runner.memory import (
    KVLayout,
    MemoryBudget,
    check_num_blocks,
    choose_num_blocks,
    memory_budget,
)
from qwen3_ray.runner.memory_profile import LargestStep, measure_step_bytes
from qwen3_ray.runner.model_runner import ModelRunner

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank, its model loaded and its KV cache allocated; the same on every rank."""

    model_config: ModelConfig
    model: Qwen3ForCausalLM
    control: StepControl
    runner: ModelRunner
    exact: bool
    """Whether a row's bits do not depend on what is computed with it."""
    device: torch.device
    stream: DeviceStream
    """All that this rank's thread queues on its device."""
    kv_layout: KVLayout
    num_blocks: int
    max_model_len: int
    weight_bytes_read: tuple[int, ...]
    """By every rank, in rank order."""


def start_rank(config: EngineConfig, rendezvous: Rendezvous, on_progress: OnProgress) -> Rank:
    """Build one rank, in the thread that will run its steps; blocks until all ranks have.

    Raises:
        ConfigError: the settings cannot work with this model, checkpoint or machine.
        EngineError: another rank did not come, or is gone.
    """
    model_config = ModelConfig.from_dir(config.model_dir)
    model_config.check_tensor_parallel(config.tensor_parallel_size)
    max_model_len = model_config.resolve_max_model_len(config.max_model_len)
    device = choose_device(config, rendezvous.rank, may_share=rendezvous.may_share_gpus)
    stream = use_own_stream(device)
    if device.type == "cpu":
        set_num_threads(config)
    tp, control = rendezvous.connect(
        device, exact=config.is_exact_on(device.type), on_progress=on_progress
    )
    model = load_model(
        config,
        model_config,
        tp,
        lambda done, total: on_progress(LoadProgress("load", done, total)),
        device=device,
    )
    on_progress(LoadProgress("warm-up"))
    layout = choose_kv_layout(config, model_config, device)
    num_blocks = _agree_on_num_blocks(
        config, model, layout=layout, control=control, max_model_len=max_model_len
    )
    kv_caches = allocate_kv_caches(
        num_layers=layout.num_layers,
        num_blocks=num_blocks,
        block_size=layout.block_size,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        dtype=layout.dtype,
        device=device,
        panels=model.kv_panels,
    )
    return Rank(
        model_config=model_config,
        model=model,
        control=control,
        runner=ModelRunner(model, kv_caches, layout.block_size),
        exact=config.is_exact_on(device.type) and model.exact,
        device=device,
        stream=stream,
        kv_layout=layout,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        weight_bytes_read=control.values_of_ranks(model.num_bytes_read),
    )


def choose_device(config: EngineConfig, rank: int, *, may_share: bool = False) -> torch.device:
    """This rank's device. A process that sees one GPU uses it, else rank `i` uses GPU `i`.

    Raises:
        ResourcesError: CUDA is asked for and there are too few GPUs, which ranks may not share.
    """
    num_gpus = torch.cuda.device_count()
    if config.device == "cpu" or (config.device == "auto" and num_gpus == 0):
        return torch.device("cpu")
    index = rank % num_gpus if may_share and num_gpus else 0 if num_gpus == 1 else rank
    if index >= num_gpus:
        raise ResourcesError(
            "device",
            config.device,
            f"tensor_parallel_size = {config.tensor_parallel_size} needs as many GPUs, "
            f"there are {num_gpus}",
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def set_num_threads(config: EngineConfig) -> None:
    """Give the calling thread's kernels this rank's share of the cores.

    The Numba kernels take as many threads as torch has. Ray sets OMP_NUM_THREADS=1 in actors;
    this overrides it.
    """
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.num_threads or max(1, num_cores // config.tensor_parallel_size))


def choose_kv_layout(
    config: EngineConfig, model_config: ModelConfig, device: torch.device
) -> KVLayout:
    """Shape and dtype of this rank's KV blocks, the defaults of the device applied."""
    on_cpu = device.type == "cpu"
    dtype: str = config.kv_cache_dtype
    if dtype == "auto":
        model_dtype = model_config.dtype if config.dtype == "auto" else config.dtype
        dtype = "float32" if on_cpu else model_dtype
    return KVLayout(
        num_layers=model_config.num_layers,
        block_size=config.block_size or (32 if on_cpu else 16),
        num_kv_heads=model_config.num_local_kv_heads(config.tensor_parallel_size),
        head_dim=model_config.head_dim,
        dtype=_DTYPES[dtype],
    )


def largest_step(config: EngineConfig, max_model_len: int, device: torch.device) -> LargestStep:
    """The most that the scheduler asks of one step."""
    num_tokens = config.num_tokens_of_a_step(device.type)
    num_logits = config.max_num_seqs + MAX_DECODE_ROWS + PROMPT_LOGPROB_ROWS
    return LargestStep(
        num_tokens=num_tokens,
        num_logits=min(num_logits, num_tokens),
        max_model_len=max_model_len,
    )


def _agree_on_num_blocks(
    config: EngineConfig,
    model: Qwen3ForCausalLM,
    *,
    layout: KVLayout,
    control: StepControl,
    max_model_len: int,
) -> int:
    """The number of blocks that every rank can have: the smallest of what each can."""
    step_bytes = None
    if config.kv_cache_memory is not None:
        budget = MemoryBudget(config.kv_cache_memory, config.kv_cache_memory)
    else:
        with group_errors("a trial step failed"):
            own = measure_step_bytes(
                model, layout, largest_step(config, max_model_len, model.device)
            )
        if has_graphs(config, model):
            limits = graph_limits(
                config,
                model.device,
                max_model_len=max_model_len,
                block_size=layout.block_size,
                num_valid_token_ids=model.config.vocab_size,
            )
            own += graph_bytes(limits.num_graphs, layout.num_layers, step_bytes=own)
        step_bytes = max(control.values_of_ranks(own))  # and no rank is in its trial any more
        budget = memory_budget(
            model.device, num_local_ranks=config.tensor_parallel_size, step_bytes=step_bytes
        )
    num_blocks = choose_num_blocks(
        layout, budget, max_model_len=max_model_len, max_num_seqs=config.max_num_seqs
    )
    num_blocks = min(control.values_of_ranks(num_blocks))
    check_num_blocks(layout, num_blocks, max_model_len=max_model_len, step_bytes=step_bytes)
    return num_blocks
