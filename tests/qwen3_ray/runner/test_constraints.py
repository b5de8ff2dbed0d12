"""The pieces that a request's edits are made of."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner.bad_words import BadWords
from qwen3_ray.runner.constraints import Constraints, mask_of
from qwen3_ray.runner.token_history import TokenHistory
from qwen3_ray.sampling_params import SamplingParams

TOKENS = st.lists(st.integers(0, 9), max_size=60)


@given(prompt=TOKENS, output=TOKENS, undone=TOKENS)
def test_a_history_counts_what_was_added_and_not_taken_back(
    prompt: list[int], output: list[int], undone: list[int]
) -> None:
    history = TokenHistory(prompt)
    for token_id in [*output, *undone]:
        history.add(token_id)
    for token_id in undone:
        history.remove(token_id)
    seen = history.seen
    assert len(set(seen["token_id"].tolist())) == len(seen)
    counts = dict(zip(seen["token_id"].tolist(), seen["num_in_output"].tolist(), strict=True))
    assert Counter(counts) == Counter(output)
    assert set(seen["token_id"][seen["in_prompt"] == 1].tolist()) == set(prompt)


@given(ids=st.lists(st.integers(0, 200)))
def test_a_mask_has_the_bits_of_its_ids(ids: list[int]) -> None:
    mask = mask_of(ids, num_words=3)
    allowed = {word * 32 + bit for word in range(3) for bit in range(32) if mask[word] >> bit & 1}
    assert mask.dtype == np.int32
    assert allowed == {token_id for token_id in ids if token_id < 96}


def test_a_bad_word_begins_in_the_output() -> None:
    words = BadWords([[5], [1, 2], [1, 1, 3], [4, 1, 6]])
    assert words.num_needed == 2
    assert set(words.bans([])) == {5}
    assert set(words.bans([1])) == {5, 2}
    assert set(words.bans([1, 1])) == {5, 2, 3}
    assert set(words.bans([4, 1])) == {5, 2, 6}


def test_the_prompt_s_end_begins_no_bad_word() -> None:
    params = SamplingParams(bad_words_token_ids=[[1, 2], [3, 4, 5]])
    request = RequestState("a", [9, 3, 1], 3, params)
    constraints = Constraints(request, eos_token_ids=frozenset(), grammar=None, num_words=1)
    assert [row.bans for row in constraints.edits(request, [4, 1, 7])] == [(), (), (2,), ()]
    request.token_ids += [3, 4]
    assert [row.bans for row in constraints.edits(request, [1])] == [(5,), (2,)]


def test_a_request_s_edits_grow_with_it_and_drafts_leave_no_trace() -> None:
    params = SamplingParams(frequency_penalty=1, repetition_penalty=2, max_tokens=9, min_tokens=2)
    request = RequestState("a", [1, 2, 3], 2, params)
    constraints = Constraints(request, eos_token_ids=frozenset({9}), grammar=None, num_words=1)
    rows = constraints.edits(request, [4, 4, 5])
    assert [row.bans for row in rows] == [(9,), (), (), ()]
    counts = [
        {token_id: count for token_id, count, _ in row.seen.tolist() if count} for row in rows
    ]
    assert counts == [{3: 1}, {3: 1, 4: 1}, {3: 1, 4: 2}, {3: 1, 4: 2, 5: 1}]
    request.token_ids.append(7)
    (row,) = constraints.edits(request, [])
    assert {token_id for token_id, count, _ in row.seen.tolist() if count} == {3, 7}
    assert {token_id for token_id, _, in_prompt in row.seen.tolist() if in_prompt} == {1, 2}
