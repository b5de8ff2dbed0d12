"""Guesses at next tokens: they change the number of steps, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.drafting import MAX_DECODE_ROWS
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.request import FinishReason, GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import EOS, Guesses, Rig, make_request, next_token, oracle


class Right(Guesses):
    """All that it may draft is right."""

    def __init__(self, max_drafts: int) -> None:
        super().__init__(max_drafts)

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        text = list(token_ids)
        for _ in range(limit):
            text.append(next_token(text))
        return text[len(token_ids) :]


class Wrong(Right):
    """Nothing that it drafts is right."""

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        return [(token_id + 1) % 50 for token_id in super().propose(token_ids, limit)]


LONG = SamplingParams(max_tokens=20, ignore_eos=True)


def drafts_of(rig: Rig) -> list[int]:
    return [item.num_drafts for item in rig.step().scheduled]


@settings(max_examples=100, deadline=None)
@given(
    share_right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
    max_drafts=st.integers(1, 6),
    num_requests=st.integers(1, 4),
    num_blocks=st.integers(7, 20),
    params=st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 20),
        ignore_eos=st.booleans(),
        stop_token_ids=st.lists(st.integers(0, 49), max_size=3),
    ),
)
def test_any_guesses_give_the_tokens_that_no_guesses_give(
    share_right: float,
    seed: int,
    max_drafts: int,
    num_requests: int,
    num_blocks: int,
    params: SamplingParams,
) -> None:
    rig = Rig(
        num_blocks=num_blocks,
        num_speculative_tokens=max_drafts,
        make_lookup=lambda count: Guesses(count, share_right, seed),
    )
    requests = [make_request(str(number), 6 + number, params) for number in range(num_requests)]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    for request in requests:
        output, end = oracle(request, rig.max_len)
        assert rig.tokens[request.request_id] == output
        assert rig.ends[request.request_id] == end
    assert rig.kv.usage == 0.0


def test_right_guesses_save_steps_and_are_counted() -> None:
    rig = Rig(num_speculative_tokens=4, make_lookup=Right)
    rig.scheduler.add(make_request("a", 6, LONG))
    rig.run()
    # The prompt's step gives 1 token, three steps 5 each, and the last one what is missing.
    assert rig.num_steps == 5
    totals = rig.scheduler.totals
    assert (totals.num_draft_tokens, totals.num_accepted_tokens) == (15, 15)


def test_a_lookup_is_told_how_many_of_its_guesses_were_right() -> None:
    lookups: list[Guesses] = []

    def make(max_drafts: int) -> Guesses:
        lookups.append(Wrong(max_drafts))
        return lookups[-1]

    rig = Rig(num_speculative_tokens=3, make_lookup=make)
    rig.scheduler.add(make_request("a", 6, SamplingParams(max_tokens=6, ignore_eos=True)))
    rig.run()
    assert len(lookups) == 1, "one for each request"
    assert lookups[0].observed == [(3, 0), (3, 0), (2, 0), (1, 0)]
    assert rig.scheduler.totals.num_draft_tokens == 9
    assert rig.scheduler.totals.num_accepted_tokens == 0


def test_wrong_guesses_leave_no_block_behind() -> None:
    rig = Rig(num_speculative_tokens=4, make_lookup=Wrong)
    rig.scheduler.add(make_request("a", 6, LONG))
    for num_tokens in range(7, 20):
        rig.step()
        # Room for the known tokens, of which the last one is not computed.
        assert round(rig.kv.usage * rig.kv.num_blocks) == -(-num_tokens // 4)


def test_right_guesses_fill_blocks_that_others_find() -> None:
    rig = Rig(num_speculative_tokens=4, make_lookup=Right)
    first = make_request("first", 10, SamplingParams(max_tokens=9, ignore_eos=True))
    rig.scheduler.add(first)
    rig.run()
    context = (*first.prompt_token_ids, *rig.tokens["first"])
    second = GenerateRequest(request_id="second", prompt_token_ids=context, params=LONG)
    rig.scheduler.add(second)
    rig.run()
    assert rig.cached["second"] == 16
    assert rig.tokens["second"] == oracle(second, rig.max_len)[0]


def test_nothing_is_guessed_beyond_the_end_of_the_output() -> None:
    rig = Rig(num_speculative_tokens=4, make_lookup=Right)
    rig.scheduler.add(make_request("a", 6, SamplingParams(max_tokens=4, ignore_eos=True)))
    rig.step()
    assert drafts_of(rig) == [2]
    assert rig.ends["a"] == (FinishReason.LENGTH, None)


def test_nothing_is_guessed_beyond_the_context() -> None:
    rig = Rig(max_model_len=10, num_speculative_tokens=4, make_lookup=Right)
    rig.scheduler.add(make_request("a", 6, LONG))
    rig.step()
    assert drafts_of(rig) == [2]
    assert rig.ends["a"] == (FinishReason.LENGTH, None)


def test_what_was_guessed_beyond_a_stop_token_is_dropped() -> None:
    rig = Rig(num_speculative_tokens=4, make_lookup=Right)
    request = make_request("a", 6, LONG)
    output, _ = oracle(request, rig.max_len)
    stop = output[3]
    params = SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=[stop])
    rig.scheduler.add(make_request("a", 6, params))
    rig.run()
    assert rig.tokens["a"] == output[: output.index(stop) + 1]
    assert rig.ends["a"] == (FinishReason.STOP, stop)
    assert rig.scheduler.totals.num_accepted_tokens == output.index(stop)
    assert stop != EOS


def test_a_large_batch_does_not_pay_for_guesses() -> None:
    rig = Rig(
        num_speculative_tokens=4, make_lookup=Right, max_num_seqs=20, max_num_batched_tokens=200
    )
    drafts = []
    for number in range(9):
        params = SamplingParams(max_tokens=200, ignore_eos=True)
        rig.scheduler.add(make_request(str(number), 4, params))
        rig.step()
        drafts.append(sum(drafts_of(rig)))
    assert drafts == [max(0, min(4 * n, MAX_DECODE_ROWS - n)) for n in range(1, 10)]


def test_guesses_are_shared_equally_and_what_one_does_not_want_goes_to_the_others() -> None:
    class Shy(Right):
        def propose(self, token_ids: list[int], limit: int) -> list[int]:
            return [] if token_ids[0] % 2 else super().propose(token_ids, limit)

    rig = Rig(num_speculative_tokens=4, make_lookup=Shy, max_num_batched_tokens=99)
    for number in range(3):
        prompt = (number % 2 == 0, number, 2, 3, 4)
        rig.scheduler.add(
            GenerateRequest(request_id=str(number), prompt_token_ids=prompt, params=LONG)
        )
    rig.step()
    assert drafts_of(rig) == [0, 3, 0]


def test_a_guess_takes_no_token_of_a_prompt_nor_a_block_of_a_request() -> None:
    rig = Rig(num_blocks=4, num_speculative_tokens=4, make_lookup=Right, max_num_batched_tokens=8)
    rig.scheduler.add(make_request("a", 6, LONG))
    rig.step()
    rig.scheduler.add(make_request("b", 6, SamplingParams(max_tokens=1)))
    assert drafts_of(rig) == [1, 0]  # 8 tokens: one of "a", 6 of "b", and a guess
    rig = Rig(num_blocks=3, num_speculative_tokens=4, make_lookup=Right, max_num_batched_tokens=30)
    for name in ("a", "b"):
        rig.scheduler.add(make_request(name, 3, LONG))
    rig.step()
    # Each has room for one token in its block, and one block is free: "a" guesses into it.
    assert drafts_of(rig) == [3, 0]
    assert rig.scheduler.totals.num_preemptions == 0


@pytest.mark.parametrize("num_accepted", [0, 1, 2])
def test_computed_tokens_are_the_known_ones_and_the_right_guesses(num_accepted: int) -> None:
    rig = Rig(num_speculative_tokens=2, make_lookup=Right)
    rig.scheduler.add(make_request("a", 6, LONG))
    rig.step()
    step = rig.scheduler.schedule()
    (item,) = step.scheduled
    request: RequestState = item.request
    sampled = (*request.draft_token_ids[:num_accepted], 49)
    assert 49 not in request.draft_token_ids
    rig.scheduler.commit(step, [Sampled(sampled)])
    assert request.num_tokens == 7 + num_accepted + 1
    assert request.num_computed_tokens == 7 + num_accepted
    assert request.draft_token_ids == []
    rig.scheduler.check_integrity()


def test_a_guess_after_which_nothing_could_be_sampled_is_where_the_next_step_begins() -> None:
    rig = Rig(num_speculative_tokens=2, make_lookup=Right)
    rig.scheduler.add(make_request("a", 6, LONG))
    rig.step()
    step = rig.scheduler.schedule()
    request = step.scheduled[0].request
    rig.scheduler.commit(step, [Sampled(tuple(request.draft_token_ids))])
    assert (request.num_tokens, request.num_computed_tokens) == (9, 8)
    rig.scheduler.check_integrity()
    (item,) = rig.scheduler.schedule().scheduled
    assert item.samples
    (delta,) = rig.scheduler.commit(Step((item,)), [Sampled(ended=True)])
    assert (delta.token_ids, delta.finish_reason) == ((), FinishReason.STOP)


def test_a_plan_with_guesses_that_was_not_committed_leaves_no_trace() -> None:
    rig = Rig(num_speculative_tokens=4, make_lookup=Right)
    request = make_request("a", 6, LONG)
    rig.scheduler.add(request)
    while rig.scheduler.has_unfinished:
        rig.scheduler.schedule()
        rig.scheduler.check_integrity()
        rig.step()
    assert rig.tokens["a"] == oracle(request, rig.max_len)[0]
    assert rig.num_steps == 5
