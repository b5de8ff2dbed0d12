"""Ranks that run in turn in one process, and one rank of a group that is not there."""

from __future__ import annotations

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import EngineError
from qwen3_ray.testing_ranks import Call, LoneRank, run_in_turn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_one_rank_runs_at_a_time_and_in_order(size: int) -> None:
    order: list[tuple[int, int]] = []

    def run(tp: TPGroup) -> list[int]:
        totals = []
        for number in range(3):
            order.append((number, tp.rank))
            x = torch.full((2,), tp.rank + number, device=DEVICE)
            totals.append(int(tp.all_reduce(x)[0]))
        return totals

    expected = [sum(range(size)) + number * size for number in range(3)]
    assert run_in_turn(size, run, device=DEVICE) == [expected] * size
    assert order == sorted(order)


def test_all_collectives_give_what_a_group_s_do() -> None:
    x = torch.arange(6.0, device=DEVICE).view(2, 3)

    def run(tp: TPGroup) -> torch.Tensor | None:
        assert tp.collectives is not None
        parts = tp.collectives.all_gather(x + tp.rank)
        assert [torch.equal(part, x + rank) for rank, part in enumerate(parts)] == [True] * 3
        y = x + tp.rank
        tp.collectives.broadcast(y)
        assert torch.equal(y, x)
        return tp.gather(x + tp.rank)

    results = run_in_turn(3, run, device=DEVICE)
    assert results[0] is not None
    assert torch.equal(results[0], torch.cat([x, x + 1, x + 2], dim=1))
    assert results[1:] == [None, None]


def test_sums_are_in_rank_order_and_rounded_to_their_dtype() -> None:
    parts = [1.7**rank * torch.arange(1, 100, device=DEVICE) / 3 for rank in range(4)]
    for dtype in (torch.float32, torch.bfloat16):
        expected = parts[0].to(dtype)
        for part in parts[1:]:
            expected = expected + part.to(dtype)
        for total in run_in_turn(4, lambda tp, d=dtype: tp.all_reduce(parts[tp.rank].to(d))):
            assert torch.equal(total, expected)


def test_the_first_error_is_raised_and_nobody_waits_for_ever() -> None:
    def run(tp: TPGroup) -> None:
        tp.all_reduce(torch.ones(1))
        if tp.rank == 1:
            raise ValueError("rank 1 is unwell")
        tp.all_reduce(torch.ones(1))

    with pytest.raises(ValueError, match="unwell"):
        run_in_turn(3, run)


@pytest.mark.parametrize("idle", [0, 1, 2])
def test_a_rank_that_ends_early_is_noticed(idle: int) -> None:
    def run(tp: TPGroup) -> None:
        tp.all_reduce(torch.ones(1))
        if tp.rank != idle:
            tp.all_reduce(torch.ones(1))

    with pytest.raises(EngineError, match="different collectives"):
        run_in_turn(3, run)


def test_ranks_that_call_different_collectives_are_noticed() -> None:
    def shapes(tp: TPGroup) -> None:
        tp.all_reduce(torch.ones(1 + tp.rank))

    def names(tp: TPGroup) -> None:
        x = torch.ones(1)
        tp.gather(x) if tp.rank else tp.all_reduce(x)

    for run in (shapes, names):
        with pytest.raises(EngineError, match="different collectives"):
            run_in_turn(2, run)


def test_a_lone_rank_notes_what_it_would_have_sent() -> None:
    lone = LoneRank(0, 4)
    group, x = lone.group(), torch.ones(2, 3, dtype=torch.bfloat16)
    assert torch.equal(group.all_reduce(x), torch.ones(2, 3, dtype=torch.bfloat16))
    logits = group.gather(x.float())
    assert logits is not None
    assert logits.shape == (2, 12)
    assert LoneRank(1, 4).group().gather(x) is None
    parts = lone.all_gather(torch.tensor([1, 0]))
    assert [part.tolist() for part in parts] == [[1, 0]] * 4
    lone.broadcast(x)
    assert lone.calls == [
        Call("all_reduce", 12),
        Call("gather", 24),
        Call("all_gather", 16),
        Call("broadcast", 12),
    ]
