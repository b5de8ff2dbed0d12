"""Ids enter a journal in order, once, and are what the usage counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.journal import JournalEntry
from qwen3_ray.errors import EngineError
from qwen3_ray.request import Usage
from qwen3_ray.sampling_params import SamplingParams


def make_entry() -> JournalEntry:
    return JournalEntry(
        request_id="r", prompt_token_ids=(1, 2, 3), params=SamplingParams(seed=1, max_tokens=9)
    )


@given(pieces=st.lists(st.lists(st.integers(0, 99), max_size=4).map(tuple), max_size=6))
def test_pieces_in_order_give_the_whole(pieces: list[tuple[int, ...]]) -> None:
    entry = make_entry()
    whole: list[int] = []
    for piece in pieces:
        entry.append(len(whole), piece)
        whole.extend(piece)
    assert entry.token_ids == whole
    assert entry.usage == Usage(prompt_tokens=3, completion_tokens=len(whole))


@pytest.mark.parametrize("from_index", [0, 1, 3], ids=["again", "overlap", "gap"])
def test_missing_or_repeated_ids_are_an_error(from_index: int) -> None:
    entry = make_entry()
    entry.replica_id = "replica-1"
    entry.append(0, (7, 8))
    with pytest.raises(EngineError, match=f"replica-1.*number {from_index}.*expected number 2"):
        entry.append(from_index, (9,))
    assert entry.token_ids == [7, 8]


def test_a_delta_of_text_alone_may_name_any_index() -> None:
    entry = make_entry()
    entry.append(0, (7,))
    entry.append(0, ())
    assert entry.token_ids == [7]
