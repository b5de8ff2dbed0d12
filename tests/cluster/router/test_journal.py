"""Ids enter a journal in order, once, and are what the usage counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.journal import JournalEntry
from qwen3_ray.errors import EngineError
from qwen3_ray.request import TokenLogprobs, Usage
from qwen3_ray.sampling_params import SamplingParams


def make_entry(n: int = 1, prompt_logprobs: int | None = None) -> JournalEntry:
    params = SamplingParams(seed=1, max_tokens=9, n=n, prompt_logprobs=prompt_logprobs)
    entry = JournalEntry(
        request_id="r", prompt_token_ids=(1, 2, 3), params=params, priority=-2, cache_salt="s"
    )
    entry.begin("replica-1")
    return entry


def entries_of(*token_ids: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(token_id=id_, logprob=-1.0, rank=1) for id_ in token_ids]


@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 99), max_size=4)), max_size=9
    )
)
def test_pieces_in_order_give_the_whole(pieces: list[tuple[int, list[int]]]) -> None:
    entry = make_entry(n=3)
    wholes: list[list[int]] = [[], [], []]
    for choice, piece in pieces:
        entry.append(choice, len(wholes[choice]), piece)
        wholes[choice].extend(piece)
    assert entry.outputs == wholes
    num_tokens = sum(map(len, wholes))
    assert entry.usage == Usage(prompt_tokens=3, completion_tokens=num_tokens)


@pytest.mark.parametrize("from_index", [0, 1, 3], ids=["again", "overlap", "gap"])
def test_missing_or_repeated_ids_are_an_error(from_index: int) -> None:
    entry = make_entry()
    entry.append(0, 0, (7, 8))
    with pytest.raises(EngineError, match=f"replica-1.*number {from_index}.*expected number 2"):
        entry.append(0, from_index, (9,))
    assert entry.outputs == [[7, 8]]


@pytest.mark.parametrize("from_index", [0, 1, 3], ids=["none", "again", "gap"])
def test_missing_or_repeated_prompt_logprobs_are_an_error(from_index: int) -> None:
    entry = make_entry(prompt_logprobs=0)
    entry.append_prompt_logprobs(1, entries_of(2))
    with pytest.raises(EngineError, match=f"prompt logprobs.*{from_index}.*expected number 2"):
        entry.append_prompt_logprobs(from_index, entries_of(3))
    entry.append_prompt_logprobs(2, entries_of(3))
    assert entry.prompt_logprobs == entries_of(2, 3)


def test_a_delta_of_text_alone_may_name_any_index() -> None:
    entry = make_entry()
    entry.append(0, 0, (7,))
    entry.append(0, 0, ())
    entry.append_prompt_logprobs(0, ())
    assert entry.outputs == [[7]]


def test_one_answer_is_asked_for_under_the_request_s_own_id() -> None:
    (request,) = make_entry(prompt_logprobs=2).requests
    assert (request.request_id, request.choice) == ("r", 0)
    assert (request.priority, request.cache_salt) == (-2, "s")
    assert request.params.prompt_logprobs == 2


def test_several_answers_share_all_but_their_number_and_only_one_scores_the_prompt() -> None:
    requests = make_entry(n=3, prompt_logprobs=2).requests
    assert [request.request_id for request in requests] == ["r-0", "r-1", "r-2"]
    assert [request.choice for request in requests] == [0, 1, 2]
    assert [request.params.prompt_logprobs for request in requests] == [2, None, None]
    assert {request.params.seed for request in requests} == {1}
    assert {request.prompt_token_ids for request in requests} == {(1, 2, 3)}
    assert {request.cache_salt for request in requests} == {"s"}


def test_another_replica_begins_anew() -> None:
    entry = make_entry(n=2, prompt_logprobs=0)
    entry.append(1, 0, (7,))
    entry.append_prompt_logprobs(1, entries_of(2))
    entry.num_cached_tokens = 2
    entry.begin("replica-2")
    assert entry.replica_id == "replica-2"
    assert (entry.outputs, entry.prompt_logprobs) == ([[], []], [])
    assert entry.usage == Usage(prompt_tokens=3, completion_tokens=0)
