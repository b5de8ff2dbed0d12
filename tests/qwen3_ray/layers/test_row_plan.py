from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.row_plan import RowPlan, find_row_plan
from qwen3_ray.testing_models import run_ranks

MAX_ROWS = 512


class TiledMatrix:
    """A product whose row count must be a multiple of `tile`: other rows come out otherwise."""

    name = "tiled"
    in_features = 8
    out_features = 8

    def __init__(self, tile: int) -> None:
        self.tile = tile

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        y = 2 * x
        num_tail = x.shape[0] % self.tile
        if num_tail:
            y[-num_tail:] += 1e-6
        return y


class PositionedMatrix(TiledMatrix):
    """A product that depends on a row's index."""

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-6 * (torch.arange(x.shape[0])[:, None] % 3)


@given(
    safe=st.lists(st.integers(1, 48), unique=True, max_size=10),
    granule=st.integers(1, 12),
    num_rows=st.integers(0, 1000),
)
def test_padding_is_the_next_safe_count(safe: list[int], granule: int, num_rows: int) -> None:
    plan = RowPlan(tuple(sorted(safe)), granule, exact=True)
    padded = plan.pad(num_rows)
    assert padded >= num_rows
    assert (padded == 0) == (num_rows == 0)
    if num_rows:
        assert padded in safe or padded % granule == 0
        assert not any(num_rows <= count < padded for count in safe)


@pytest.mark.parametrize("tile", [1, 2, 4, 6, 8])
def test_the_tile_is_found(tile: int) -> None:
    plan = find_row_plan([TiledMatrix(tile)], TPGroup.single(), MAX_ROWS)
    assert plan.exact
    assert plan.granule == tile
    assert all(count % tile == 0 for count in plan.safe_counts)
    assert all(plan.pad(n) % tile == 0 for n in range(600))
    assert plan.pad(tile) == tile


@pytest.mark.parametrize("bad_count", [56, 104, 128, 504, MAX_ROWS])
def test_one_bad_multiple_is_enough_to_refuse_a_granule(bad_count: int) -> None:
    """FBGEMM's tiles fit most multiples of 4, but not 32: all up to 132 and some beyond count."""

    class ExceptOne(TiledMatrix):
        def matmul(self, x: torch.Tensor) -> torch.Tensor:
            return super().matmul(x) + (1e-6 if x.shape[0] == bad_count else 0)

    plan = find_row_plan([ExceptOne(8)], TPGroup.single(), MAX_ROWS)
    assert plan.granule > 8 or not plan.exact
    assert plan.pad(bad_count) != bad_count or not plan.exact


def test_every_matrix_counts() -> None:
    class Other(TiledMatrix):
        name = "other"

    plan = find_row_plan([TiledMatrix(4), Other(6)], TPGroup.single(), MAX_ROWS)
    assert plan.granule == 12
    assert plan.safe_counts[:2] == (12, 24)


@pytest.mark.parametrize("matrix", [TiledMatrix(7), PositionedMatrix(1)])
def test_without_a_safe_count_nothing_is_padded_or_claimed(matrix: TiledMatrix) -> None:
    plan = find_row_plan([matrix], TPGroup.single(), MAX_ROWS)
    assert plan == RowPlan()
    assert not plan.exact
    assert plan.pad(17) == 17


def test_ranks_agree_on_what_is_safe_for_all() -> None:
    tiles = [2, 6, 1]
    plans = run_ranks(3, lambda tp: find_row_plan([TiledMatrix(tiles[tp.rank])], tp, MAX_ROWS))
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].granule == 6


def test_ranks_with_matrices_of_different_kinds_try_the_same_counts() -> None:
    """A shard that fp16 does not hold makes its rank slower, so that it can afford fewer."""

    class Slow(TiledMatrix):
        name = "slow"
        out_features = 10**8

    matrices = [[TiledMatrix(2)], [TiledMatrix(2), Slow(4)]]
    plans = run_ranks(2, lambda tp: find_row_plan(matrices[tp.rank], tp, MAX_ROWS), timeout_s=10)
    assert plans[0] == plans[1]
    assert plans[0].granule == 4
