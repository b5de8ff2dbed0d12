"""All layers in one call have the bits of their kernels called one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.testing_forward import SequenceCache, forward_step
from qwen3_ray.testing_models import TINY_MODEL, TINY_MOE, make_checkpoint, run_ranks
from tests.qwen3_ray.model.helpers import load, random_ids

MODELS: dict[str, ModelConfig] = {
    "tiny": TINY_MODEL,
    "sizes that fill no tile": replace(
        TINY_MODEL, hidden_size=90, intermediate_size=70, head_dim=16, num_heads=6, num_kv_heads=3
    ),
}
MAX_LEN = 80
Step = list[tuple[int, int, int]]


@pytest.fixture(scope="module", params=MODELS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), MODELS[request.param])


def steps_of(sizes: list[list[int]]) -> list[Step]:
    """Each inner list: how many tokens of each sequence a step computes, 0 for none."""
    done = [0] * max(map(len, sizes))
    steps: list[Step] = []
    for step in sizes:
        chunks = []
        for sequence, size in enumerate(step):
            length = min(size, MAX_LEN - done[sequence])
            if length > 0:
                chunks.append((sequence, done[sequence], length))
                done[sequence] += length
        if chunks:
            steps.append(chunks)
    return steps


def logits_of(
    model_dir: Path, steps: list[Step], *, fused: bool, tp: TPGroup | None = None
) -> list[torch.Tensor | None]:
    model = load(model_dir, tp)
    assert model.is_fused
    model = model if fused else model.unfused()
    ids = [random_ids(model_dir, MAX_LEN, seed) for seed in range(4)]
    cache = SequenceCache(model, [MAX_LEN] * len(ids))
    return [forward_step(model, cache, ids, step) for step in steps]


def assert_equal(results: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert (result is None) == (wanted is None)
        assert result is None or wanted is None or torch.equal(result, wanted)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(
        st.lists(st.sampled_from([0, 1, 1, 1, 2, 5, 13, 40]), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_any_steps_have_the_same_bits(model_dir: Path, sizes: list[list[int]]) -> None:
    steps = steps_of(sizes)
    assert_equal(logits_of(model_dir, steps, fused=True), logits_of(model_dir, steps, fused=False))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_bits_do_not_depend_on_threads(
    model_dir: Path, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of([[33, 2, 1, 0], [1, 1, 1, 7], [1, 1, 1, 1]])
    expected = logits_of(model_dir, steps, fused=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr("qwen3_ray.cpu.thread_pool._MIN_OPERATIONS", 1)
    assert_equal(logits_of(model_dir, steps, fused=True), expected)


def test_ranks_sum_inside_the_call(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path)
    steps = steps_of([[33, 2, 1, 0], [1, 1, 1, 7], [1, 1, 1, 1]])

    def run(*, fused: bool) -> list[list[torch.Tensor | None]]:
        return run_ranks(2, lambda tp: logits_of(directory, steps, fused=fused, tp=tp))

    for result, expected in zip(run(fused=True), run(fused=False), strict=True):
        assert_equal(result, expected)


def test_experts_are_not_fused(tmp_path: Path) -> None:
    assert not load(make_checkpoint(tmp_path, TINY_MOE)).is_fused
    assert not load(make_checkpoint(tmp_path / "dense"), kernels="reference").is_fused
