import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.errors import EngineError
from qwen3_ray.runner.input_batch import build
from qwen3_ray.sampling_params import SamplingParams

ARRAYS = ("input_ids", "positions", "slot_mapping", "block_tables", "logits_indices", "seq_lens")


def request_of(
    token_ids: list[int], num_computed_tokens: int, block_ids: list[int]
) -> RequestState:
    return RequestState(
        "r", token_ids, len(token_ids), SamplingParams(), num_computed_tokens, block_ids
    )


def test_a_chunk_a_prefill_and_a_decode_are_laid_out_in_one_step() -> None:
    chunk = request_of([10, 11, 12, 13, 14, 15], 2, [7, 3])
    prefill = request_of([20, 21, 22], 0, [5])
    decode = request_of([30, 31, 32, 33, 34], 4, [1, 0])
    step = Step(
        (ScheduledRequest(chunk, 3), ScheduledRequest(prefill, 3), ScheduledRequest(decode, 1))
    )
    arrays = build(step, 4)
    assert arrays.num_tokens == 7
    assert arrays.input_ids.tolist() == [12, 13, 14, 20, 21, 22, 34]
    assert arrays.positions.tolist() == [2, 3, 4, 0, 1, 2, 4]
    assert arrays.slot_mapping.tolist() == [30, 31, 12, 20, 21, 22, 0]
    assert arrays.query_start_loc.tolist() == [0, 3, 6, 7]
    assert arrays.seq_lens.tolist() == [5, 3, 5]
    assert arrays.block_tables.tolist() == [[7, 3], [5, 0], [1, 0]]
    assert arrays.logits_indices.tolist() == [5, 6]  # the chunk samples nothing


def test_a_step_of_chunks_wants_no_logits() -> None:
    step = Step((ScheduledRequest(request_of([1, 2, 3], 0, [0]), 2),))
    arrays = build(step, 4)
    assert arrays.num_logits == 0


def test_blocks_beyond_the_tokens_of_the_step_are_left_out() -> None:
    step = Step((ScheduledRequest(request_of(list(range(9)), 0, [4, 5, 6]), 3),))
    assert build(step, 4).block_tables.tolist() == [[4]]


def test_rows_for_prompt_logprobs_come_before_the_sampled_ones() -> None:
    params = SamplingParams(prompt_logprobs=0)
    chunk = RequestState("a", list(range(10)), 10, params, 3, [0, 1, 2], num_prompt_logprobs=3)
    last = RequestState("b", list(range(20, 26)), 6, params, 4, [3, 4], num_prompt_logprobs=4)
    delivered = RequestState("c", list(range(30, 36)), 6, params, 2, [5, 6], num_prompt_logprobs=5)
    resumed = RequestState("d", list(range(40, 48)), 5, params, 2, [7, 8], num_prompt_logprobs=2)
    items = [ScheduledRequest(chunk, 4), ScheduledRequest(last, 2)]
    items += [ScheduledRequest(delivered, 4), ScheduledRequest(resumed, 6)]
    arrays = build(Step(tuple(items)), 4)
    # The last prompt position foretells the first output token, which is sampled or known.
    wanted = {"a": [0, 1, 2, 3], "b": [4, 5], "c": [9], "d": [10, 11, 15]}
    assert arrays.logits_indices.tolist() == [row for rows in wanted.values() for row in rows]
    assert [item.num_logits for item in items] == [len(rows) for rows in wanted.values()]


def test_drafts_follow_the_known_tokens_and_each_wants_its_logits() -> None:
    request = request_of([1, 2, 3, 4, 5], 4, [6, 7])
    request.draft_token_ids = [50, 51, 52, 53]
    arrays = build(Step((ScheduledRequest(request, 4, 3),)), 4)
    assert arrays.input_ids.tolist() == [5, 50, 51, 52]
    assert arrays.positions.tolist() == [4, 5, 6, 7]
    assert arrays.slot_mapping.tolist() == [28, 29, 30, 31]
    assert arrays.seq_lens.tolist() == [8]
    assert arrays.logits_indices.tolist() == [0, 1, 2, 3]


def test_drafts_beyond_the_blocks_of_their_request_are_an_error() -> None:
    request = request_of([1, 2, 3, 4], 3, [6])
    request.draft_token_ids = [50]
    fits = request_of([1], 0, [7, 8])
    with pytest.raises(EngineError, match="fewer KV blocks"):
        build(Step((ScheduledRequest(request, 2, 1), ScheduledRequest(fits, 1))), 4)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, int]:
    """Requests of every kind on blocks of some size, no block shared."""
    block_size = draw(st.integers(1, 7))
    scheduled: list[ScheduledRequest] = []
    next_block = 0
    for index in range(draw(st.integers(1, 8))):
        computed, known = draw(st.integers(0, 20)), draw(st.integers(1, 20))
        pending = draw(st.sampled_from((0, 0, 3)))
        num_drafts = draw(st.integers(0, 4)) if pending == 0 else 0
        num_blocks = -(-(computed + known + num_drafts) // block_size)
        token_ids = [100 * index + i for i in range(computed + known + pending)]
        request = RequestState(
            str(index),
            token_ids,
            draw(st.integers(1, len(token_ids))),
            SamplingParams(prompt_logprobs=draw(st.sampled_from((None, 0, 3)))),
            computed,
            list(range(next_block, next_block + num_blocks))[::-1],
            num_prompt_logprobs=draw(st.integers(0, 25)),
            draft_token_ids=[5_000 + index * 10 + i for i in range(num_drafts + 1)],
        )
        next_block += num_blocks
        scheduled.append(ScheduledRequest(request, known + num_drafts, num_drafts))
    return Step(tuple(scheduled)), block_size


@settings(max_examples=100, deadline=None)
@given(case=steps())
def test_every_row_finds_its_token_and_its_slot(case: tuple[Step, int]) -> None:
    step, block_size = case
    arrays = build(step, block_size)
    row, logits_rows = 0, []
    for index, item in enumerate(step.scheduled):
        request = item.request
        tokens = request.token_ids + request.draft_token_ids
        if item.num_drafts == 0:
            tokens = request.token_ids
        assert arrays.query_start_loc[index] == row
        first = request.num_computed_tokens
        assert arrays.seq_lens[index] == first + item.num_new_tokens
        logits_rows += [row + position - first for position in item.logits_positions]
        for position in range(first, first + item.num_new_tokens):
            assert arrays.input_ids[row] == tokens[position]
            assert arrays.positions[row] == position
            block = request.block_ids[position // block_size]
            assert arrays.slot_mapping[row] == block * block_size + position % block_size
            assert arrays.block_tables[index, position // block_size] == block
            row += 1
    assert arrays.num_tokens == arrays.query_start_loc[-1] == row
    assert len(np.unique(arrays.slot_mapping)) == row
    assert arrays.logits_indices.tolist() == logits_rows
    assert all(getattr(arrays, name).dtype == np.int32 for name in ARRAYS)


def decodes(num_requests: int, num_drafts: int = 0) -> Step:
    items = []
    for index in range(num_requests):
        request = request_of(list(range(200)), 199, list(range(8 * index, 8 * index + 8)))
        request.draft_token_ids = list(range(num_drafts))
        items.append(ScheduledRequest(request, 1 + num_drafts, num_drafts))
    return Step(tuple(items))


def seconds(step: Step) -> float:
    return min(timeit.repeat(lambda: build(step, 32), number=5, repeat=7))


def test_the_cost_follows_the_requests_and_hardly_their_rows() -> None:
    """In units of one plain loop over the requests: a few operations of numpy on each take 250."""
    step = decodes(256)
    many = seconds(step)
    loop = lambda: [item.request.num_computed_tokens for item in step.scheduled]  # noqa: E731
    assert many < 100 * min(timeit.repeat(loop, number=5, repeat=7))
    assert seconds(decodes(1_024)) < 6 * many
    assert seconds(decodes(256, num_drafts=4)) < 2.5 * many  # five times the rows
    prefill = request_of(list(range(2_048)), 0, list(range(64)))
    assert seconds(Step((ScheduledRequest(prefill, 2_048),))) < many  # eight times the rows
