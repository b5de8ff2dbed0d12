import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.layers.row_plan import RowPlan
from qwen3_ray.runner.input_batch import build
from qwen3_ray.sampling_params import SamplingParams

SIXES = RowPlan(safe_counts=(), granule=6, exact=True)
UNPADDED = RowPlan(safe_counts=(), granule=1, exact=False)


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
    arrays = build(step, 4, SIXES)
    assert arrays.num_tokens == 7
    assert arrays.num_padded_tokens == 12
    assert arrays.input_ids.tolist() == [12, 13, 14, 20, 21, 22, 34, 0, 0, 0, 0, 0]
    assert arrays.positions.tolist() == [2, 3, 4, 0, 1, 2, 4, 0, 0, 0, 0, 0]
    assert arrays.slot_mapping.tolist() == [30, 31, 12, 20, 21, 22, 0, -1, -1, -1, -1, -1]
    assert arrays.query_start_loc.tolist() == [0, 3, 6, 7]
    assert arrays.seq_lens.tolist() == [5, 3, 5]
    assert arrays.block_tables.tolist() == [[7, 3], [5, 0], [1, 0]]
    assert arrays.logits_indices.tolist() == [5, 6, 0, 0, 0, 0]  # the chunk samples nothing
    assert arrays.num_logits == 2


def test_a_step_of_chunks_wants_no_logits() -> None:
    step = Step((ScheduledRequest(request_of([1, 2, 3], 0, [0]), 2),))
    arrays = build(step, 4, SIXES)
    assert (arrays.num_logits, arrays.num_padded_logits) == (0, 0)


def test_blocks_beyond_the_tokens_of_the_step_are_left_out() -> None:
    step = Step((ScheduledRequest(request_of(list(range(9)), 0, [4, 5, 6]), 3),))
    assert build(step, 4, UNPADDED).block_tables.tolist() == [[4]]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=8
    ),
    block_size=st.integers(1, 7),
)
def test_every_row_finds_its_token_and_its_slot(
    sizes: list[tuple[int, int, int]], block_size: int
) -> None:
    """Sizes are computed, new and further pending tokens of each request."""
    scheduled, next_block = [], 0
    for computed, new, pending in sizes:
        num_blocks = -(-(computed + new) // block_size)
        block_ids = list(range(next_block, next_block + num_blocks))[::-1]
        next_block += num_blocks
        token_ids = [100 * len(scheduled) + i for i in range(computed + new + pending)]
        scheduled.append(ScheduledRequest(request_of(token_ids, computed, block_ids), new))
    arrays = build(Step(tuple(scheduled)), block_size, UNPADDED)
    row = 0
    for index, item in enumerate(scheduled):
        assert arrays.query_start_loc[index] == row
        for position in range(item.request.num_computed_tokens, int(arrays.seq_lens[index])):
            assert arrays.input_ids[row] == item.request.token_ids[position]
            assert arrays.positions[row] == position
            block = item.request.block_ids[position // block_size]
            assert arrays.slot_mapping[row] == block * block_size + position % block_size
            assert arrays.block_tables[index, position // block_size] == block
            row += 1
    assert arrays.num_tokens == row
    assert len(np.unique(arrays.slot_mapping)) == row
