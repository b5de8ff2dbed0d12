"""How the tokens of a step are shared, by definition and one rule at a time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.token_budget import (
    MAX_PARTIAL_PREFILLS,
    PROMPT_LOGPROB_ROWS,
    PrefillBudget,
    Verdict,
    max_min_shares,
)
from qwen3_ray.sampling_params import SamplingParams


def make_prefill(
    num_tokens: int, *, arrival: int = 0, priority: int = 0, scored: bool = False
) -> RequestState:
    return RequestState(
        request_id=f"{priority} {arrival}",
        token_ids=[0] * num_tokens,
        prompt_len=num_tokens,
        params=SamplingParams(prompt_logprobs=0 if scored else None),
        rank=(priority, arrival),
    )


def make_prefills(count: int, num_tokens: int, *, scored: bool = False) -> list[RequestState]:
    return [make_prefill(num_tokens, arrival=index, scored=scored) for index in range(count)]


def shares(budget: PrefillBudget) -> list[int]:
    return [num_tokens for _, num_tokens in budget.shares()]


@settings(max_examples=300, deadline=None)
@given(total=st.integers(0, 60), wants=st.lists(st.integers(0, 30), max_size=6))
def test_shares_are_max_min_fair(total: int, wants: list[int]) -> None:
    given = max_min_shares(total, wants)
    assert sum(given) == min(total, sum(wants))
    assert all(0 <= share <= want for share, want in zip(given, wants, strict=True))
    for share, want in zip(given, wants, strict=True):
        # Who gets less than wanted gets as much as anybody else, but for what is not divisible.
        assert share == want or share >= max(given) - 1


def test_what_cannot_be_divided_goes_to_the_first_of_those_that_want_least() -> None:
    assert max_min_shares(7, [9, 5, 5]) == [2, 3, 2]
    assert max_min_shares(1, [9, 9]) == [1, 0]


def test_a_prefill_alone_gets_everything() -> None:
    assert shares(PrefillBudget(100, make_prefills(1, 1_000))) == [100]
    assert shares(PrefillBudget(100, make_prefills(1, 30))) == [30]


def test_newcomers_leave_a_prefill_in_flight_its_share() -> None:
    budget = PrefillBudget(100, make_prefills(1, 1_000))
    verdicts = []
    for arrival in range(1, 10):
        newcomer = make_prefill(20, arrival=arrival)
        verdicts.append(budget.judge(newcomer, 0))
        if verdicts[-1] is Verdict.WHOLE:
            assert budget.take_all(newcomer) == 20
    assert verdicts == [Verdict.WHOLE] * 4 + [Verdict.LATER] * 5
    assert shares(budget) == [20]


def test_with_all_places_taken_a_share_is_left_for_newcomers_that_can_be_done_at_once() -> None:
    budget = PrefillBudget(100, make_prefills(MAX_PARTIAL_PREFILLS, 1_000))
    assert budget.judge(make_prefill(21, arrival=9), 0) is Verdict.NO_PLACE
    assert budget.judge(make_prefill(21, arrival=9), 1) is Verdict.WHOLE
    short = make_prefill(20, arrival=9)
    assert budget.judge(short, 0) is Verdict.WHOLE
    budget.take_all(short)
    assert budget.judge(make_prefill(1, arrival=10), 0) is Verdict.LATER
    assert shares(budget) == [20] * MAX_PARTIAL_PREFILLS


def test_one_long_newcomer_joins_in_a_step_and_shares_with_those_in_flight() -> None:
    budget = PrefillBudget(100, make_prefills(1, 1_000))
    newcomer = make_prefill(500, arrival=1)
    assert budget.judge(newcomer, 0) is Verdict.PART
    budget.join(newcomer)
    assert budget.judge(make_prefill(500, arrival=2), 0) is Verdict.LATER
    assert shares(budget) == [50, 50]


def test_many_join_in_a_step_while_tokens_are_left_over() -> None:
    budget = PrefillBudget(1_000, [])
    for prefill in make_prefills(3, 900, scored=True):
        assert budget.judge(prefill, 0) is Verdict.PART
        budget.join(prefill)
    newcomer = make_prefill(5_000, arrival=9)
    assert budget.judge(newcomer, 0) is Verdict.PART
    budget.join(newcomer)
    assert shares(budget) == [43, 43, 42, 872]


def test_nobody_joins_at_the_cost_of_the_shares_of_those_in_flight() -> None:
    budget = PrefillBudget(100, make_prefills(2, 1_000))
    budget.take_all(make_prefill(41, arrival=2))
    assert budget.judge(make_prefill(60, arrival=3), 0) is Verdict.LATER
    assert budget.judge(make_prefill(19, arrival=3), 0) is Verdict.WHOLE


def test_tokens_that_are_left_over_are_a_place() -> None:
    budget = PrefillBudget(100, make_prefills(MAX_PARTIAL_PREFILLS, 10))
    newcomer = make_prefill(500, arrival=9)
    assert budget.judge(newcomer, 0) is Verdict.PART
    budget.join(newcomer)
    assert budget.judge(make_prefill(500, arrival=10), 0) is Verdict.NO_PLACE
    assert shares(budget) == [10] * MAX_PARTIAL_PREFILLS + [60]


def test_nobody_joins_when_it_would_get_nothing() -> None:
    budget = PrefillBudget(2, make_prefills(2, 50))
    assert budget.judge(make_prefill(50, arrival=9), 0) is Verdict.LATER
    assert shares(budget) == [1, 1]


def test_a_more_urgent_newcomer_takes_all_that_it_needs() -> None:
    budget = PrefillBudget(100, make_prefills(2, 1_000))
    urgent = make_prefill(95, priority=-1)
    assert budget.judge(urgent, 0) is Verdict.WHOLE
    budget.take_all(urgent)
    assert shares(budget) == [5, 0]


def test_a_less_urgent_newcomer_gets_what_is_left_over() -> None:
    budget = PrefillBudget(100, make_prefills(1, 70))
    assert budget.judge(make_prefill(31, priority=1), 0) is Verdict.PART
    assert budget.judge(make_prefill(30, priority=1), 0) is Verdict.WHOLE
    budget.join(make_prefill(31, priority=1))
    budget.join(make_prefill(99, priority=-1))
    assert shares(budget) == [99, 1, 0]


def test_what_one_is_refused_none_gets_that_needs_the_same() -> None:
    budget = PrefillBudget(1_000, make_prefills(MAX_PARTIAL_PREFILLS, 1_000, scored=True))
    plain, scored = budget.places
    for _ in range(2):
        assert budget.refuse(make_prefill(500, scored=True)) == scored
        assert budget.places == [plain]
    assert budget.refuse(make_prefill(500)) == plain
    assert budget.places == []


def test_a_scored_prompt_without_rows_stands_aside_while_tokens_are_left() -> None:
    budget = PrefillBudget(1_000, [])
    for prefill in make_prefills(4, 33, scored=True):
        assert budget.judge(prefill, 0) is Verdict.WHOLE
        budget.take_all(prefill)
    assert budget.judge(make_prefill(2, arrival=9, scored=True), 0) is Verdict.NO_PLACE
    assert budget.judge(make_prefill(50, arrival=9), 0) is Verdict.WHOLE
    budget.take_all(make_prefill(1_000 - 4 * 33, arrival=9))
    assert budget.judge(make_prefill(2, arrival=9, scored=True), 0) is Verdict.LATER


def test_nobody_leaves_while_a_place_is_free() -> None:
    prefills = make_prefills(MAX_PARTIAL_PREFILLS - 1, 1_000)
    assert PrefillBudget(100, prefills).leave(-1) is None


def test_the_least_urgent_prefill_leaves_for_a_more_urgent_one_alone() -> None:
    prefills = [*make_prefills(3, 1_000), make_prefill(1_000, priority=2)]
    budget = PrefillBudget(100, prefills)
    assert budget.leave(2) is None
    assert budget.leave(1) is prefills[3]
    assert budget.leave(0) is None
    assert shares(budget) == [34, 33, 33]


def test_prompt_logprobs_of_all_requests_together_are_bounded() -> None:
    budget = PrefillBudget(1_000, make_prefills(3, 1_000, scored=True))
    assert shares(budget) == [43, 43, 42]
    newcomers = [make_prefill(21, arrival=9 + index, scored=True) for index in range(3)]
    verdicts = []
    for newcomer in newcomers:
        verdicts.append(budget.judge(newcomer, 0))
        if verdicts[-1] is Verdict.WHOLE:
            budget.take_all(newcomer)
    # The three in flight are sure of 25 rows each; two newcomers take 20 of the 53 others each.
    assert verdicts == [Verdict.WHOLE, Verdict.WHOLE, Verdict.NO_PLACE]
    assert shares(budget) == [30, 29, 29]
    assert PROMPT_LOGPROB_ROWS == 2 * 20 + 30 + 29 + 29


def test_a_scored_prompt_leaves_the_tokens_that_it_has_no_rows_for_to_others() -> None:
    prefills = [make_prefill(1_000, scored=True), make_prefill(5_000, arrival=1)]
    assert shares(PrefillBudget(1_000, prefills)) == [128, 872]
    scored = make_prefills(MAX_PARTIAL_PREFILLS, 1_000, scored=True)
    budget = PrefillBudget(1_000, scored)
    assert budget.judge(make_prefill(5_000, arrival=9, scored=True), 0) is Verdict.NO_PLACE
    assert budget.judge(make_prefill(5_000, arrival=9), 0) is Verdict.PART


def test_the_last_token_of_a_scored_prompt_needs_no_row() -> None:
    assert shares(PrefillBudget(1_000, [make_prefill(129, scored=True)])) == [129]
    assert shares(PrefillBudget(1_000, [make_prefill(130, scored=True)])) == [128]


def test_logprobs_given_out_before_need_no_rows() -> None:
    request = make_prefill(400, scored=True)
    request.num_prompt_logprobs = 100
    assert shares(PrefillBudget(1_000, [request])) == [228]
    request.num_computed_tokens = 96
    assert shares(PrefillBudget(1_000, [request])) == [132]
