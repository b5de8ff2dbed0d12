"""What a step takes of memory is measured, and is not given to the KV cache."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.startup import choose_kv_layout, largest_step
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.runner import memory_profile
from qwen3_ray.runner.input_batch import build
from qwen3_ray.runner.memory import KVLayout, choose_num_blocks, host_budget
from qwen3_ray.runner.memory_profile import LargestStep, measure_step_bytes, peak_bytes_of_process
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import engine_config, run_ranks

MIB = 2**20


def layout_of(model: Qwen3ForCausalLM) -> KVLayout:
    return choose_kv_layout(engine_config(DEMO_MODEL_DIR), model.config, model.device)


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return load_model(
        engine_config(DEMO_MODEL_DIR), ModelConfig.from_dir(DEMO_MODEL_DIR), TPGroup.single()
    )


def step_bytes(model: Qwen3ForCausalLM, num_tokens: int, num_logits: int) -> int:
    largest = LargestStep(num_tokens=num_tokens, num_logits=num_logits, max_model_len=1_000)
    return measure_step_bytes(model, layout_of(model), largest)


def test_the_peak_of_a_process_is_seen_and_what_it_freed_before_is_not_missed() -> None:
    def run() -> None:
        torch.ones(10 * MIB, dtype=torch.uint8)

    for _ in range(3):  # memory that malloc keeps would hide the second
        # The system counts pages of each core in batches.
        assert 9.5 * MIB <= peak_bytes_of_process(run) <= 14 * MIB


def test_a_peak_that_cannot_be_reset_is_told_and_is_never_negative(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\n")
    (tmp_path / "clear_refs").mkdir()  # not to be written
    assert peak_bytes_of_process(lambda: None, tmp_path) == 0
    assert "cannot be measured" in caplog.text


def test_a_step_takes_at_least_its_widest_tensors(model: Qwen3ForCausalLM) -> None:
    num_tokens, num_logits = 4_000, 1_000
    config = model.config
    widest = 4 * num_tokens * (3 * config.intermediate_size + config.hidden_size)
    logits = 4 * num_logits * config.vocab_size
    measured = step_bytes(model, num_tokens, num_logits)
    assert widest + logits <= measured <= 4 * (widest + logits)


def test_more_tokens_in_a_step_leave_fewer_blocks_where_memory_is_the_limit(
    model: Qwen3ForCausalLM,
) -> None:
    layout, num_blocks = layout_of(model), []
    for max_num_batched_tokens in (512, 4_096, 16_384):
        config = engine_config(
            DEMO_MODEL_DIR, max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=64
        )
        taken = measure_step_bytes(model, layout, largest_step(config, 4_096, torch.device("cpu")))
        budget = host_budget(1_000 * MIB, step_bytes=taken)
        num_blocks.append(choose_num_blocks(layout, budget, max_model_len=4_096, max_num_seqs=64))
    assert num_blocks[0] > num_blocks[1] > num_blocks[2] > 0


def test_few_rows_of_one_layer_foretell_a_large_step_of_the_whole_model(
    model: Qwen3ForCausalLM,
) -> None:
    num_tokens, layout = 3_000, layout_of(model)
    params = SamplingParams(prompt_logprobs=0)
    blocks = list(range(layout.num_blocks_for(num_tokens)))
    request = RequestState("r", [1] * num_tokens, num_tokens, params, block_ids=blocks)
    arrays = build(Step((ScheduledRequest(request, num_tokens),)), layout.block_size)
    assert arrays.num_logits == num_tokens
    caches = allocate_kv_caches(
        num_layers=layout.num_layers,
        num_blocks=len(blocks),
        block_size=layout.block_size,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        dtype=layout.dtype,
        device=model.device,
        panels=model.kv_panels,
    )
    runner = ModelRunner(model, caches, layout.block_size)
    runner.execute(arrays)  # the cache's own memory is taken
    taken = peak_bytes_of_process(lambda: runner.execute(arrays))
    assert taken <= step_bytes(model, num_tokens, num_tokens) <= 2.5 * taken


def test_the_most_that_a_step_may_be_asked_for_follows_from_the_settings() -> None:
    def of(**changes: object) -> LargestStep:
        return largest_step(engine_config(DEMO_MODEL_DIR, **changes), 500, torch.device("cpu"))

    assert of(max_num_seqs=64) == LargestStep(
        num_tokens=256, num_logits=64 + 8 + 128, max_model_len=500
    )
    assert of(max_num_seqs=8, max_num_batched_tokens=100).num_logits == 100


@pytest.mark.parametrize(("num_logits", "num_sampled"), [(3, 3), (392, 256)])
def test_on_a_gpu_what_sampling_takes_is_kept_too(
    num_logits: int, num_sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited logits, and the ids of candidates for a cut: of so many rows at a time."""
    probe = SimpleNamespace(measure=lambda _num_tokens, num_logits: 1_000 * num_logits)
    monkeypatch.setattr(memory_profile, "_Probe", lambda *_: probe)
    on_gpu = SimpleNamespace(
        device=torch.device("cuda"), config=SimpleNamespace(vocab_size=67), shortened=lambda: None
    )
    largest = LargestStep(num_tokens=500, num_logits=num_logits, max_model_len=1_000)
    taken = measure_step_bytes(on_gpu, None, largest)  # type: ignore[arg-type]
    assert taken == 1_000 * num_logits + num_sampled * 67 * (4 + 4)


def test_ranks_measure_together() -> None:
    config = engine_config(DEMO_MODEL_DIR, tensor_parallel_size=2)
    model_config = ModelConfig.from_dir(DEMO_MODEL_DIR)
    layout = choose_kv_layout(config, model_config, torch.device("cpu"))
    largest = LargestStep(num_tokens=2_048, num_logits=64, max_model_len=256)

    def run(tp: TPGroup) -> int:
        return measure_step_bytes(load_model(config, model_config, tp), layout, largest)

    assert all(size > MIB for size in run_ranks(2, run))
