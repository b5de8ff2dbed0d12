"""Rows choose their experts on the device as the oracle says, and tiles hold every pair once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from qwen3_ray.layers import moe
from qwen3_ray.layers.moe import Routing
from qwen3_ray.layers.triton_moe import Pairs, max_num_tiles, route

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALL = Routing(5, True, 0, 16)
NUM_ROWS = [1, 15, 16, 17, 70]
"""One program chooses and sorts for up to 16 rows; beyond that each does for 32."""

ROUTINGS = {
    "all of 16": (16, ALL),
    "not normalised": (16, ALL._replace(normalise=False)),
    "the first 4 of 16": (16, Routing(5, True, 0, 4)),
    "7 from the middle of 16": (16, Routing(5, True, 6, 7)),
    "1 of 12": (12, Routing(3, True, 0, 12)),
    "the last half of 12": (12, Routing(1, True, 6, 6)),
    "all are chosen": (6, Routing(6, True, 0, 6)),
    "Qwen3-30B-A3B on two": (128, Routing(8, True, 64, 64)),
}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN, or the largest integers."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random_logits(num_rows: int, num_experts: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, num_experts, generator=generator).to(DEVICE, dtype)


def tiles_of(pairs: Pairs) -> list[tuple[int, int, int]]:
    return [(expert, a, b) for expert, a, b in pairs.tiles[: int(pairs.num_tiles)].tolist()]


def check(pairs: Pairs, logits: torch.Tensor, routing: Routing, tile_rows: int) -> None:
    """All of `pairs` against `moe.route`."""
    expected = moe.route(logits, routing)
    num_pairs = expected.starts[-1]
    # Experts have their rows in order, and each pair is at one place.
    assert torch.equal(pairs.rows[:num_pairs], expected.rows)
    positions = pairs.positions.flatten().long()
    own = positions >= 0
    assert torch.equal(positions[own].sort().values, torch.arange(num_pairs, device=DEVICE))
    rows = torch.arange(len(logits), device=DEVICE).repeat_interleave(routing.top_k)
    assert torch.equal(pairs.rows[positions[own]].long(), rows[own])
    assert (positions[~own] == -1).all()
    # A row's experts ascend.
    for row in pairs.positions.tolist():
        here = [position for position in row if position >= 0]
        assert here == sorted(here)
    weights = torch.empty(num_pairs, device=DEVICE)
    weights[positions[own]] = pairs.weights.flatten()[own]
    torch.testing.assert_close(weights, expected.weights)
    check_tiles(pairs, expected.starts, tile_rows)


def check_tiles(pairs: Pairs, starts: list[int], tile_rows: int) -> None:
    """Tiles of an expert are full, all but its last."""
    expected = [
        (expert, first, min(first + tile_rows, stop))
        for expert, (start, stop) in enumerate(pairwise(starts))
        for first in range(start, stop, tile_rows)
    ]
    assert sorted(tiles_of(pairs)) == expected


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_pairs_are_the_oracles(num_rows: int, name: str) -> None:
    num_experts, routing = ROUTINGS[name]
    logits = random_logits(num_rows, num_experts, torch.float32)
    check(route(logits, routing, 16), logits, routing, 16)


@pytest.mark.parametrize("num_rows", [9, 70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_16_bits_often_tie(dtype: torch.dtype, num_rows: int) -> None:
    logits = random_logits(num_rows, 128, dtype)
    assert any(len(row.unique()) < 128 for row in logits)
    routing = Routing(8, True, 0, 128)
    check(route(logits, routing, 64), logits, routing, 64)


@pytest.mark.parametrize("repeats", [1, 20])
def test_ties_go_to_the_lowest_experts(repeats: int) -> None:
    logits = torch.tensor(
        [
            [0.0] * 16,
            [1.0, 2.0, 2.0, 2.0] + [0.0] * 12,
            [5.0] + [1.0] * 15,
            [-1.0, -0.0, -0.0, -0.0, 0.0] + [-1.0] * 11,
            [-2.0, -3.0, -2.0, -1.0] + [-2.0] * 12,
        ],
        device=DEVICE,
    ).repeat(repeats, 1)
    routing = ALL._replace(top_k=3)
    pairs = route(logits, routing, 16)
    experts = torch.full([pairs.rows.numel()], -1)
    for expert, first, stop in tiles_of(pairs):
        experts[first:stop] = expert
    chosen = experts[pairs.positions.long().cpu()].tolist()
    assert chosen == [[0, 1, 2], [1, 2, 3], [0, 1, 2], [1, 2, 3], [0, 2, 3]] * repeats
    check(pairs, logits, routing, 16)


@pytest.mark.parametrize("num_rows", [16, 90])
@pytest.mark.parametrize("tile_rows", [16, 64])
def test_one_expert_may_have_all_rows(tile_rows: int, num_rows: int) -> None:
    logits = torch.zeros(num_rows, 4, device=DEVICE)
    logits[:, 2] = 1
    routing = Routing(1, True, 0, 4)
    pairs = route(logits, routing, tile_rows)
    assert {expert for expert, _, _ in tiles_of(pairs)} == {2}
    check(pairs, logits, routing, tile_rows)


@pytest.mark.parametrize("num_rows", [16, 40])
def test_a_rank_may_have_no_rows(num_rows: int) -> None:
    logits = torch.zeros(num_rows, 4, device=DEVICE)
    logits[:, 2] = 1
    pairs = route(logits, Routing(1, True, 0, 2), 16)
    assert tiles_of(pairs) == []
    assert (pairs.positions == -1).all()


@pytest.mark.parametrize(("num_rows", "num_experts"), [(1, 5), (4, 5), (5, 5), (33, 3)])
def test_there_is_room_for_the_most_tiles(num_rows: int, num_experts: int) -> None:
    """All experts but one have one row, where there are rows enough."""
    logits = torch.zeros(num_rows, num_experts, device=DEVICE)
    logits[:, 0] = 1
    for row in range(1, min(num_rows, num_experts)):
        logits[row, row] = 2
    pairs = route(logits, Routing(1, True, 0, num_experts), 16)
    most = max_num_tiles(num_rows, num_experts, 16)
    assert int(pairs.num_tiles) <= most == len(pairs.tiles)
    assert int(pairs.num_tiles) >= min(num_rows, num_experts)


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    logits = random_logits(70, 16, torch.float32)
    whole = route(logits, ALL, 16).weights
    for start, stop in ((0, 1), (5, 6), (69, 70), (3, 19), (3, 36)):
        assert torch.equal(route(logits[start:stop], ALL, 16).weights, whole[start:stop])


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, of the interpreter
@pytest.mark.parametrize("num_rows", [4, 20])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_a_broken_row_is_nan_and_breaks_no_other(value: float, num_rows: int) -> None:
    logits = random_logits(num_rows, 16, torch.float32)
    expected = route(logits, ALL, 16)
    logits[1, 3] = value
    pairs = route(logits, ALL, 16)
    others = [row for row in range(num_rows) if row != 1]
    assert torch.equal(pairs.weights[others], expected.weights[others])
    assert pairs.weights[1].isnan().all()
    assert sorted(pairs.rows.tolist()) == sorted(list(range(num_rows)) * ALL.top_k)
    assert len(pairs.positions.unique()) == num_rows * ALL.top_k
