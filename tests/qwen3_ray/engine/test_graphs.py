"""Whether a rank's steps are captured, what memory is kept for it, and what is said if it fails."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig
from qwen3_ray.distributed.control import StepControl
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine import startup
from qwen3_ray.engine.graphs import build_graphs
from qwen3_ray.engine.startup import Rank
from qwen3_ray.errors import ConfigError, EngineError
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.runner.device_stream import InlineStream, Work
from qwen3_ray.runner.memory import KVLayout, MemoryBudget

CPU = torch.device("cpu")
CONFIG = EngineConfig(model_dir=DEMO_MODEL_DIR, max_num_seqs=4, max_num_batched_tokens=16)
LAYOUT = KVLayout(num_layers=3, block_size=16, num_kv_heads=1, head_dim=16, dtype=torch.float32)
MIB = 2**20
NUM_GRAPHS = 1 + 2 * 3  # prompts of 128 tokens; 1, 2 and 4 decodes, with cuts and without


class _CapturingStream(InlineStream):
    """Runs what it captures, as CUDA's does."""

    def capture(self, work: Work) -> Work:
        work()
        return work


def make_rank(problem: Exception | None = None) -> Rank:
    """A rank whose model says that it can be captured."""

    def forward(input_ids: torch.Tensor, *_: object) -> torch.Tensor:
        if problem is not None:
            raise problem
        return torch.zeros(min(len(input_ids), 4), 23)

    rank = SimpleNamespace(
        model=make_model(),
        control=StepControl(None, 0, 1),
        runner=SimpleNamespace(forward=forward),
        kv_layout=LAYOUT,
        max_model_len=32,
        device=CPU,
        stream=_CapturingStream(),
    )
    return cast(Rank, rank)


def make_model(*, can_capture: bool = True) -> Qwen3ForCausalLM:
    model = SimpleNamespace(
        can_capture=can_capture,
        tp=TPGroup.single(),
        device=CPU,
        config=SimpleNamespace(vocab_size=23),
    )
    return cast(Qwen3ForCausalLM, model)


def test_who_wants_no_graphs_gets_none() -> None:
    rank = make_rank()
    assert build_graphs(rank, CONFIG, 23) is not None
    assert build_graphs(rank, replace(CONFIG, enforce_eager=True), 23) is None


def test_a_gpu_too_small_for_graphs_is_a_matter_of_settings() -> None:
    rank = make_rank(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ConfigError, match=f"^kv_cache_memory.*{NUM_GRAPHS} .*--enforce-eager"):
        build_graphs(rank, CONFIG, 23)


def test_a_step_that_cannot_be_captured_ends_the_engine_with_its_own_error() -> None:
    rank = make_rank(RuntimeError("operation not permitted when stream is capturing"))
    with pytest.raises(EngineError, match=r"could not be captured.*not permitted when stream"):
        build_graphs(rank, CONFIG, 23)


@pytest.mark.parametrize(
    ("can_capture", "enforce_eager", "num_graphs"),
    [(True, False, NUM_GRAPHS), (True, True, 0), (False, False, 0)],
)
def test_memory_is_kept_for_graphs_and_for_what_the_driver_keeps_of_each(
    can_capture: bool, enforce_eager: bool, num_graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def budget(*_: object, step_bytes: int, **__: object) -> MemoryBudget:
        kept.append(step_bytes)
        return MemoryBudget(2**30, 2**30)

    monkeypatch.setattr(startup, "measure_step_bytes", lambda *_: 100 * MIB)
    monkeypatch.setattr(startup, "memory_budget", budget)
    startup._agree_on_num_blocks(
        replace(CONFIG, enforce_eager=enforce_eager),
        make_model(can_capture=can_capture),
        layout=LAYOUT,
        control=StepControl(None, 0, 1),
        max_model_len=32,
    )
    shared = 100 * MIB if num_graphs else 0
    driver = num_graphs * LAYOUT.num_layers * 12 * 64 * 1024
    assert kept == [100 * MIB + shared + driver]
