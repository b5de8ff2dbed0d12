"""Room for a token ahead: given where there is any, at nobody's cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import Rig, make_request, oracle

PARAMS = SamplingParams(ignore_eos=True, max_tokens=20)


def running(rig: Rig) -> Sequence[RequestState]:
    return list(rig.scheduler._table.running)


@pytest.mark.parametrize("num_lookahead_tokens", [0, 1, 5])
def test_a_request_that_goes_on_has_room_ahead_of_each_step(num_lookahead_tokens: int) -> None:
    rig = Rig(num_lookahead_tokens=num_lookahead_tokens)
    rig.scheduler.add(make_request("a", 6, PARAMS))
    has_room = []
    while rig.scheduler.has_unfinished:
        rig.step()
        for request in running(rig):
            ahead = min(num_lookahead_tokens, 20 - request.num_output_tokens)
            room = len(request.block_ids) * 4 - request.num_computed_tokens
            has_room.append(room >= ahead)
            assert room < 4 + max(1, num_lookahead_tokens)
    assert all(has_room)


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_the_last_token_gets_no_room_after_it(max_tokens: int) -> None:
    rig = Rig(num_lookahead_tokens=1)
    params = SamplingParams(ignore_eos=True, max_tokens=max_tokens)
    rig.scheduler.add(make_request("a", 4, params))
    (item,) = rig.scheduler.schedule().scheduled
    assert len(item.request.block_ids) == max_tokens


def test_nobody_loses_blocks_for_what_is_ahead() -> None:
    """Two fill all blocks to the last slot: there is nothing to be had, and nothing is taken."""
    rig = Rig(num_blocks=4, num_lookahead_tokens=1)
    for name in "ab":
        rig.scheduler.add(make_request(name, 7, SamplingParams(ignore_eos=True, max_tokens=2)))
    rig.run()
    assert rig.scheduler.totals.num_preemptions == 0


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 20)), min_size=1, max_size=8),
    num_blocks=st.integers(6, 14),
    num_lookahead_tokens=st.integers(1, 6),
    num_speculative_tokens=st.sampled_from([0, 3]),
)
def test_tokens_are_the_same_and_every_request_ends(
    sizes: list[tuple[int, int]],
    num_blocks: int,
    num_lookahead_tokens: int,
    num_speculative_tokens: int,
) -> None:
    rig = Rig(
        num_blocks=num_blocks,
        max_model_len=24,
        num_lookahead_tokens=num_lookahead_tokens,
        num_speculative_tokens=num_speculative_tokens,
    )
    requests = [
        make_request(str(index), length, SamplingParams(max_tokens=count), like="x", num_shared=8)
        for index, (length, count) in enumerate(sizes)
    ]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert rig.kv.usage == 0
    for request in requests:
        assert rig.tokens[request.request_id] == oracle(request, rig.max_len)[0]
