"""Drafts against a plain search, and what drafting costs and saves over whole answers."""

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen3_ray.core.prompt_lookup import MAX_CANDIDATES, MAX_MATCH, MAX_WAIT, PromptLookup

# Few different tokens, so that long matches and many candidates are common.
TOKEN_IDS = st.lists(st.integers(0, 3), max_size=80)


def search(token_ids: Sequence[int], num_drafts: int) -> list[int]:
    """By definition: the best match among the most recent places, and what followed it."""
    places = [place for place in range(2, len(token_ids)) if match_length(token_ids, place) >= 2][
        -MAX_CANDIDATES:
    ]
    if not places:
        return []
    best = max(places, key=lambda place: (match_length(token_ids, place), place))
    text = list(token_ids)
    for index in range(num_drafts):
        text.append(text[best + index])
    return text[len(token_ids) :]


def match_length(token_ids: Sequence[int], place: int) -> int:
    before, last = token_ids[:place], token_ids
    return max(
        length
        for length in range(min(MAX_MATCH, place) + 1)
        if before[place - length :] == last[len(last) - length :]
    )


def ready(max_drafts: int) -> PromptLookup:
    """One whose drafts have all been right: it drafts as much as it may."""
    lookup = PromptLookup(max_drafts)
    for num_drafts in (1, 2, 4, 8):
        lookup.observe(num_drafts, num_drafts)
    return lookup


@settings(max_examples=300, deadline=None)
@given(token_ids=TOKEN_IDS, first=st.integers(0, 80), limit=st.integers(0, 9))
@example(token_ids=[1, 2] * 40, first=3, limit=9)
@example(token_ids=[0, 1, 2] + [3, 1, 2] * MAX_CANDIDATES + [0, 1, 2], first=0, limit=1)
@example(token_ids=[0, 1, 2] + [3, 1, 2] * (MAX_CANDIDATES - 1) + [0, 1, 2], first=0, limit=1)
def test_a_draft_is_what_followed_the_best_recent_match(
    token_ids: list[int], first: int, limit: int
) -> None:
    lookup = ready(max_drafts=8)
    for length in range(first, len(token_ids) + 1):
        assert lookup.propose(token_ids[:length], limit) == search(
            token_ids[:length], min(limit, 8)
        )


@settings(max_examples=100, deadline=None)
@given(token_ids=TOKEN_IDS, lengths=st.sets(st.integers(0, 80)))
def test_calls_left_out_change_no_draft(token_ids: list[int], lengths: set[int]) -> None:
    lookup = ready(max_drafts=4)
    for length in sorted(lengths):
        lookup.propose(token_ids[:length], 4)
    assert lookup.propose(token_ids, 4) == ready(max_drafts=4).propose(token_ids, 4)


def test_drafts_grow_while_they_are_right_and_shrink_to_what_was() -> None:
    lookup, text = PromptLookup(max_drafts=6), [1, 2] * 20
    lengths = []
    for accepted in (1, 2, 4, 6, 3, 3):
        draft = lookup.propose(text, 99)
        lookup.observe(len(draft), accepted)
        lengths.append(len(draft))
    assert lengths == [1, 2, 4, 6, 6, 3]
    assert len(lookup.propose(text, 99)) == 6
    assert len(lookup.propose(text, 2)) == 2


def waits(lookup: PromptLookup, accepted: Sequence[int]) -> list[int]:
    """Steps without a draft before each of some drafts of one token."""
    text, counts = [1, 2] * 20, []
    for num_accepted in accepted:
        counts.append(0)
        while not (draft := lookup.propose(text, 1)):
            counts[-1] += 1
        lookup.observe(len(draft), num_accepted)
    return counts


def test_waits_double_with_failures_and_shrink_with_successes() -> None:
    assert waits(ready(4), (0, 0, 0, 0, 1, 0, 0, 0, 0, 0)) == [0, 1, 2, 4, 8, 0, 4, 8, 16, 32]


def test_one_begins_distrustful_and_waits_no_longer_than_the_longest_wait() -> None:
    assert waits(PromptLookup(4), [0] * 5) == [0, 16, 32, MAX_WAIT, MAX_WAIT]


def test_a_pair_is_a_match_only_while_drafts_are_right() -> None:
    text = [9, 1, 2, 3, 8, 1, 2]
    lookup = PromptLookup(4)
    assert lookup.propose(text, 1) == []
    assert lookup.propose([*text, 3, 9, 1, 2], 1) == [3]
    lookup.observe(1, 1)
    assert ready(4).propose(text, 1) == [3]


def test_drafts_that_were_not_computed_teach_nothing() -> None:
    lookup, text = ready(max_drafts=4), [1, 2] * 20
    lookup.observe(0, 0)
    assert len(lookup.propose(text, 4)) == 4


def test_without_drafts_allowed_none_are_made() -> None:
    lookup = PromptLookup(max_drafts=0)
    assert lookup.propose([1, 2] * 20, 4) == []
    assert PromptLookup(max_drafts=4).propose([1, 2] * 20, 0) == []


@settings(max_examples=300, deadline=None)
@given(data=st.data(), max_drafts=st.integers(1, 8), num_steps=st.integers(1, 300))
def test_rejected_tokens_are_bounded_whatever_is_accepted(
    data: st.DataObject, max_drafts: int, num_steps: int
) -> None:
    """Text in which everything is foretold, and an adversary that decides what comes true."""
    lookup, text = PromptLookup(max_drafts), [1, 2] * 20
    rule = data.draw(st.lists(st.integers(0, max_drafts), min_size=1, max_size=20))
    num_accepted = num_rejected = 0
    for step in range(num_steps):
        draft = lookup.propose(text, max_drafts)
        accepted = min(len(draft), rule[step % len(rule)])
        lookup.observe(len(draft), accepted)
        num_accepted += accepted
        num_rejected += len(draft) - accepted
        assert num_rejected <= 4 * num_accepted + 4 + step / (MAX_WAIT + 1)


@dataclass
class Run:
    """What an answer took: steps, and rows of drafts that were computed for nothing."""

    num_steps: int = 0
    num_rejected: int = 0


def run(prompt: Sequence[int], answer: Sequence[int], max_drafts: int = 4) -> Run:
    """Decode `answer` after `prompt`, verifying drafts as an engine does."""
    lookup, text, result = PromptLookup(max_drafts), list(prompt), Run()
    while (done := len(text) - len(prompt)) < len(answer):
        draft = lookup.propose(text, len(answer) - done - 1)
        accepted = 0
        while accepted < len(draft) and draft[accepted] == answer[done + accepted]:
            accepted += 1
        lookup.observe(len(draft), accepted)
        text += answer[done : done + accepted + 1]
        result.num_steps += 1
        result.num_rejected += len(draft) - accepted
    return result


def test_copying_a_long_passage_takes_a_fraction_of_the_steps() -> None:
    rng = random.Random(0)
    prompt = [rng.randrange(150_000) for _ in range(600)]
    result = run(prompt, prompt[100:600])
    assert result.num_steps <= 500 / 4.5
    assert result.num_rejected == 0


def test_copying_with_small_changes_takes_less_than_two_thirds_of_the_steps() -> None:
    rng = random.Random(1)
    prompt = [rng.randrange(150_000) for _ in range(1000)]
    answer = [rng.randrange(150_000) if rng.random() < 0.03 else token for token in prompt]
    result = run([*prompt, *prompt[:2]], answer[2:])
    assert result.num_steps <= 998 / 1.5
    assert result.num_rejected <= result.num_steps


@pytest.mark.parametrize("num_tokens", [8, 100, 4_000], ids="of {} tokens".format)
def test_random_text_costs_next_to_nothing(num_tokens: int) -> None:
    """With 8 different tokens every pair was seen before: everything looks foretold."""
    rng = random.Random(2)
    answer = [rng.randrange(num_tokens) for _ in range(2_000)]
    result = run([0], answer)
    assert result.num_rejected <= 0.02 * len(answer)
    assert run([0], answer[:200]).num_rejected <= 0.03 * 200


def best_seconds(make_text: Callable[[int], list[int]], num_tokens: int) -> float:
    """Processor time of proposing after each of `num_tokens` tokens; the best of three."""
    text, best = make_text(num_tokens), float("inf")
    for _ in range(3):
        lookup, grown = ready(max_drafts=4), list[int]()
        start = time.thread_time()
        for token_id in text:
            grown.append(token_id)
            lookup.propose(grown, 4)
        best = min(best, time.thread_time() - start)
    return best


def one_token(num_tokens: int) -> list[int]:
    return [7] * num_tokens


def a_pair_before_everything(num_tokens: int) -> list[int]:
    """Many candidates, and none matches in more than the pair."""
    return [id_ for number in range(num_tokens // 3) for id_ in (1, 2, 3 + number)]


def random_tokens(num_tokens: int) -> list[int]:
    rng = random.Random(3)
    return [rng.randrange(5) for _ in range(num_tokens)]


@pytest.mark.parametrize(
    "make_text", [one_token, a_pair_before_everything, random_tokens], ids=lambda f: f.__name__
)
def test_a_proposal_costs_the_new_tokens_not_the_whole_text(
    make_text: Callable[[int], list[int]],
) -> None:
    ratios = []
    for _ in range(5):
        ratios.append(best_seconds(make_text, 12_000) / best_seconds(make_text, 3_000))
        if ratios[-1] <= 6:
            return
    pytest.fail(f"4 times the tokens cost {ratios} times as much")


def test_a_token_takes_about_a_hundred_bytes() -> None:
    lookup = PromptLookup(4)
    lookup.propose(list(range(20_000)), 4)
    latest = lookup._latest
    size = sys.getsizeof(latest) + sys.getsizeof(lookup._previous)
    size += sum(sys.getsizeof(pair) + sys.getsizeof(place) for pair, place in latest.items())
    assert size / 20_000 <= 150
