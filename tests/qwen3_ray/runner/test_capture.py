"""All that is captured - model, sampling, next inputs - can be, as far as that shows on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.control import StepControl
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.layers import moe
from qwen3_ray.layers.moe import Routing
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.weights import load_model
from qwen3_ray.runner import cuda_graphs, triton_advance
from qwen3_ray.runner.cuda_graphs import Choose, GraphLimits, GraphRunner
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.triton_choice import choose
from qwen3_ray.runner.triton_shard_choice import ShardChoice
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import TINY_MODEL, TINY_MOE, engine_config, make_checkpoint
from tests.qwen3_ray.runner.capture_rig import CapturingStream, NotCapturableError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU captures by itself")
CPU = torch.device("cpu")
SMALL = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
         "vocab_size": 67, "dtype": "float32"}  # fmt: skip
LIMITS = GraphLimits(
    max_num_seqs=1, max_num_batched_tokens=16, max_model_len=48, block_size=16,
    num_valid_token_ids=60,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "numerics", "choice"),
    [(TINY_MODEL, "exact", choose), (TINY_MOE, "fast", ShardChoice(TPGroup.single()))],
    ids=["dense", "experts"],
)
def test_whole_steps_can_be_captured_and_repeated(
    shape: ModelConfig,
    numerics: str,
    choice: Choose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "PROMPT_TOKENS", (16,))  # interpreting 128 rows takes long
    shape = replace(shape, **SMALL)
    config = engine_config(make_checkpoint(tmp_path, shape), dtype="float32", numerics=numerics)
    model = load_model(config, shape, TPGroup.single(), device=CPU, kernels="triton")
    caches = allocate_kv_caches(
        num_layers=1, num_blocks=4, block_size=16, num_kv_heads=1, head_dim=16,
        dtype=torch.float32, device=CPU, panels=False,
    )  # fmt: skip
    stream, runner = CapturingStream(), ModelRunner(model, caches, 16)
    graphs = GraphRunner(runner.forward, choice, triton_advance, LIMITS, device=CPU, stream=stream)
    graphs.warm_up()
    assert stream.num_captured == LIMITS.num_graphs
    control = StepControl(None, 0, 1)
    sampler = Sampler(num_valid_token_ids=60, device=CPU, kernels="triton")
    executor = partial(
        GroupExecutor, control=control, runner=runner, sampler=sampler, num_blocks=4, block_size=16
    )
    replayed = tokens_of(executor(graphs=graphs))
    assert graphs.num_replays == 5, "the last one is not asked for any more"
    assert replayed == tokens_of(executor())
    assert len(set(replayed)) > 2, "the model says always the same"
    stream.check_memory()


def tokens_of(executor: GroupExecutor) -> list[int]:
    """Four tokens after a prompt, over a border of blocks."""
    params = SamplingParams(temperature=1.0, seed=7)
    state = RequestState("a", list(range(14)), 14, params, block_ids=[3, 1])
    for count in (14, 1, 1, 1):
        (result,) = executor.execute(Step((ScheduledRequest(state, count),)))
        state.num_computed_tokens += count
        state.token_ids += result.token_ids
    return state.token_ids[14:]


X = torch.randn(4, 3)


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize(
    "work",
    [
        lambda: X.sum().item(),
        lambda: float(X.sum()),
        lambda: range(X.argmax()),
        lambda: bool(X.any()),
        lambda: X.tolist(),  # noqa: PLW0108 - another method by then
        lambda: X.cpu(),  # noqa: PLW0108
        lambda: X[X > 0],
        lambda: X.argmax().nonzero(),
        lambda: torch.tensor([1, 2]),
        lambda: torch.arange(3).repeat_interleave(torch.tensor([1, 2, 3])),
        lambda: moe.route(X, Routing(2, True, 0, 3)),
    ],
)
def test_what_waits_for_the_device_is_refused(
    work: Callable[[], object], is_inference: bool
) -> None:
    with pytest.raises(NotCapturableError), torch.inference_mode(is_inference):
        CapturingStream().capture(work)


def test_memory_that_does_not_outlive_the_capture_is_noticed() -> None:
    stream, kept = CapturingStream(), [torch.ones(3), torch.ones(3)]
    stream.capture(lambda: kept[0][1:] + kept[1][1:] + torch.ones(2))
    stream.check_memory()
    kept.pop()
    with pytest.raises(NotCapturableError, match="1 tensors that were read are gone"):
        stream.check_memory()
