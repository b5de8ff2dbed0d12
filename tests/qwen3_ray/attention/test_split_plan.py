"""Grids of a step's attention, with the shapes of Qwen3-4B."""

from dataclasses import replace

import pytest

from qwen3_ray.attention.split_plan import Launch, Planner, Tile

EXACT, SMALL, LARGE = Tile(64, 64, 4, 2), Tile(16, 64, 4, 5), Tile(128, 64, 8, 3)
FAST = Planner(
    exact=False, split_len=128, busy_programs=512, num_heads=32, num_kv_heads=8, head_dim=128,
    max_len=32_768, small=SMALL, large=LARGE,
)  # fmt: skip
PLANNERS = {
    "fast": FAST,
    "exact": replace(FAST, exact=True, split_len=256, small=EXACT, large=EXACT),
}


@pytest.fixture(params=PLANNERS)
def planner(request: pytest.FixtureRequest) -> Planner:
    return PLANNERS[request.param]


def num_programs(launch: Launch, planner: Planner) -> int:
    return launch.num_tiles * planner.num_kv_heads * launch.num_programs


@pytest.mark.parametrize("num_seqs", [1, 2, 8, 32, 256])
def test_few_sequences_that_decode_share_out_their_splits(planner: Planner, num_seqs: int) -> None:
    (launch,) = planner.plan(num_seqs, num_seqs)
    assert launch.tile == planner.small
    assert num_programs(launch, planner) >= 512
    assert (launch.num_programs == 1) == (num_seqs > 64)
    num_bytes = 4 * num_seqs * 32 * launch.num_partials * 130
    assert num_bytes <= 256 << 20


def test_no_more_programs_share_splits_than_there_are(planner: Planner) -> None:
    (launch,) = replace(planner, max_len=512).plan(1, 1)
    assert launch.num_programs == 512 // planner.split_len
    assert replace(planner, max_len=planner.split_len).plan(1, 1)[0].num_programs == 1


def test_each_anchored_split_has_a_partial_result() -> None:
    (launch,) = PLANNERS["exact"].plan(8, 8)
    assert launch.num_partials == 32_768 // 256
    (launch,) = FAST.plan(8, 8)
    assert launch.num_partials == launch.num_programs


def test_results_that_would_take_much_memory_are_not_left_there() -> None:
    exact = PLANNERS["exact"]
    assert exact.plan(64, 1)[0].num_programs > 1
    assert replace(exact, max_len=1 << 20).plan(64, 1)[0].num_programs == 1


def test_a_prompt_has_large_tiles(planner: Planner) -> None:
    (launch,) = planner.plan(2_048, 1)
    assert launch.tile == planner.large
    assert launch.num_programs == 1
    assert launch.num_tiles * planner.large.block_m // 4 >= 2_048


def test_a_mixed_step_has_a_grid_for_those_that_decode_and_one_for_the_others() -> None:
    own, rest = FAST.plan(512, 8)
    assert own.tile == SMALL
    assert own.tile_per_sequence
    assert own.num_tiles == 8
    assert rest.tile == LARGE
    assert own.min_rows == 0
    assert own.max_rows + 1 == rest.min_rows
    assert own.max_rows * 4 <= SMALL.block_m


def test_tiles_alike_need_no_second_grid_unless_splits_are_shared_out() -> None:
    exact = PLANNERS["exact"]
    assert len(exact.plan(512, 8)) == 2
    assert len(exact.plan(1_024, 128)) == 1
