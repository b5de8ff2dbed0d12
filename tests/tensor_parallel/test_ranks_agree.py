"""Ranks together say what one rank says: as processes that meet through gloo, and in turn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.shard import Shard
from qwen3_ray.testing_models import make_checkpoint
from qwen3_ray.testing_ranks import run_in_turn
from tests.tensor_parallel.greedy import HEADS_OF_4B, NUM_STEPS, Answer, answer, load

ROOT = Path(__file__).parents[2]
BOUND = 1e-5
"""Largest logit difference over the largest logit: sums of float32 in another order."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes: how many threads share a product may change its bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    make_checkpoint(path / "model", HEADS_OF_4B, std=0.3)
    return path


@pytest.fixture(scope="module")
def alone(directory: Path) -> Answer:
    return answer(load(directory / "model", TPGroup.single()))


@pytest.fixture(scope="module")
def in_turn(directory: Path) -> dict[int, Answer]:
    return {
        size: run_in_turn(size, lambda tp: answer(load(directory / "model", tp)))[0]
        for size in (2, 4, 8, 16)
    }


@pytest.fixture(scope="module")
def over_gloo(directory: Path) -> dict[int, Answer]:
    """Groups of 2 and 4 processes; the second one holds the first one's."""
    module = "tests.tensor_parallel.greedy"
    children = [
        subprocess.Popen([sys.executable, "-m", module, directory, str(rank), "2", "4"], cwd=ROOT)
        for rank in range(4)
    ]
    assert [child.wait(120) for child in children] == [0] * 4
    return {size: Answer(*torch.load(directory / f"answer-{size}.pt")) for size in (2, 4)}


def assert_near(got: Answer, expected: Answer) -> None:
    error = (got.logits - expected.logits).abs().max() / expected.logits.abs().max()
    assert float(error) <= BOUND
    assert got.token_ids == expected.token_ids


def test_the_answer_would_show_a_mistake(alone: Answer) -> None:
    """Its tokens vary, and none was nearly another one."""
    assert len(alone.token_ids) == NUM_STEPS
    assert len(set(alone.token_ids)) > NUM_STEPS // 3
    best = alone.logits.topk(2).values
    assert float((best[:, 0] - best[:, 1]).min()) > 10 * BOUND * float(alone.logits.abs().max())


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_ranks_in_turn_say_what_one_says(
    size: int, in_turn: dict[int, Answer], alone: Answer
) -> None:
    assert_near(in_turn[size], alone)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_over_gloo_say_what_one_says(
    size: int, over_gloo: dict[int, Answer], alone: Answer
) -> None:
    assert_near(over_gloo[size], alone)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_in_turn_have_the_bits_of_processes(
    size: int, over_gloo: dict[int, Answer], in_turn: dict[int, Answer]
) -> None:
    assert torch.equal(over_gloo[size].logits, in_turn[size].logits)


def test_bits_differ_from_those_of_one_rank(in_turn: dict[int, Answer], alone: Answer) -> None:
    """The control: the sums that are compared are made in another order."""
    assert not torch.equal(in_turn[4].logits, alone.logits)


def test_sixteen_ranks_share_eight_kv_heads() -> None:
    shards = [Shard.of(HEADS_OF_4B, rank, 16) for rank in range(16)]
    assert [shard.kv.start // HEADS_OF_4B.head_dim for shard in shards] == [
        rank // 2 for rank in range(16)
    ]
    assert {shard.kv.size for shard in shards} == {HEADS_OF_4B.head_dim}
    assert {shard.q.size for shard in shards} == {2 * HEADS_OF_4B.head_dim}


def test_a_rank_with_the_wrong_heads_is_noticed(
    directory: Path, alone: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: rank 1 of 16 takes the key/value head of rank 2."""
    of = Shard.of

    def wrong(config: ModelConfig, rank: int, size: int) -> Shard:
        shard = of(config, rank, size)
        return replace(shard, kv=of(config, 2, size).kv) if rank == 1 else shard

    monkeypatch.setattr(Shard, "of", wrong)
    got = run_in_turn(16, lambda tp: answer(load(directory / "model", tp), num_steps=2))[0]
    assert (got.logits - alone.logits[:2]).abs().max() > 100 * BOUND * alone.logits.abs().max()
