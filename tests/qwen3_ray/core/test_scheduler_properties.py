"""Any mix of requests and events, against the oracle of one request alone."""

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.prompt_lookup import PromptLookup
from qwen3_ray.core.request_state import Lookup
from qwen3_ray.errors import RequestError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import (
    VOCAB_SIZE,
    Guesses,
    Rig,
    count_restarts,
    make_request,
    oracle,
    oracle_prompt_logprobs,
)


def make_params(
    max_tokens: int | None,
    min_tokens: int,
    prompt_logprobs: int | None,
    ignore_eos: bool,
    stop_token_ids: list[int],
) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens if max_tokens is None else min(min_tokens, max_tokens),
        prompt_logprobs=prompt_logprobs,
        ignore_eos=ignore_eos,
        stop_token_ids=stop_token_ids,
    )


PARAMS = st.builds(
    make_params,
    max_tokens=st.one_of(st.none(), st.integers(0, 30)),
    min_tokens=st.sampled_from([0, 0, 8]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2),
)


def always_right(max_drafts: int) -> Guesses:
    return Guesses(max_drafts, share_right=1.0)


RIGS = st.builds(
    Rig,
    num_blocks=st.integers(6, 12),
    block_size=st.sampled_from([1, 2, 4]),
    max_num_seqs=st.integers(2, 6),
    max_num_batched_tokens=st.integers(6, 20),
    max_model_len=st.integers(12, 48),
    enable_prefix_caching=st.sampled_from([True, True, True, False]),
    num_speculative_tokens=st.sampled_from([0, 1, 4]),
    make_lookup=st.sampled_from([PromptLookup, Guesses, always_right]),
    num_lookahead_tokens=st.sampled_from([0, 0, 1, 4]),
)


class Add(NamedTuple):
    """Prompts begin like one of two, so that they share all lengths of prefixes."""

    num_tokens: int
    params: SamplingParams
    like: str
    num_shared: int
    num_known: int
    priority: int
    cache_salt: str

    def request(self, request_id: str) -> GenerateRequest:
        return make_request(
            request_id,
            self.num_tokens,
            self.params,
            like=self.like,
            num_shared=self.num_shared,
            num_known=self.num_known,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )


ADD = st.builds(
    Add,
    num_tokens=st.integers(0, 14),
    params=PARAMS,
    like=st.sampled_from("xy"),
    num_shared=st.integers(0, 14),
    num_known=st.sampled_from([0, 0, 0, 1, 5]),
    priority=st.sampled_from([0, 0, 0, -1, 1]),
    cache_salt=st.sampled_from(["", "", "salt"]),
)
ABORT = st.integers(0, 50)
OTHER = st.sampled_from(["step", "step", "steps", "steps", "steps", "reset"])
SCHEDULES = st.lists(st.one_of(ADD, ADD, ADD, OTHER, OTHER, ABORT), min_size=8, max_size=40)


class Play:
    """Plays a schedule of events on a rig, and knows what each request must have got."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.accepted: dict[str, GenerateRequest] = {}
        self.aborted: set[str] = set()

    def act(self, number: int, action: Add | int | str) -> None:
        if isinstance(action, Add):
            self.add(action.request(str(number)))
        elif isinstance(action, int):
            self.abort(action)
        elif action == "reset":
            self.rig.scheduler.reset_prefix_cache()
        else:
            for _ in range(1 if action == "step" else 5):
                self.rig.step()
        self.rig.scheduler.check_integrity()

    def add(self, request: GenerateRequest) -> None:
        if 1 <= len(request.prompt_token_ids) < self.rig.max_len:
            self.rig.scheduler.add(request)
            self.accepted[request.request_id] = request
        else:
            with pytest.raises(RequestError):
                self.rig.scheduler.add(request)

    def abort(self, pick: int) -> None:
        if not self.accepted:
            return
        request_id = list(self.accepted)[pick % len(self.accepted)]
        unfinished = request_id not in self.rig.ends and request_id not in self.aborted
        assert self.rig.scheduler.abort(request_id) == unfinished
        if unfinished:
            self.aborted.add(request_id)

    def check_answers(self) -> None:
        rig = self.rig
        assert set(rig.ends) == set(self.accepted) - self.aborted
        for request_id, request in self.accepted.items():
            output, end = oracle(request, rig.max_len)
            scores = oracle_prompt_logprobs(request)
            given = [*request.output_token_ids, *rig.tokens.get(request_id, [])]
            given_scores = rig.prompt_logprobs.get(request_id, [])
            assert given_scores == scores[: len(given_scores)]
            # What it came with may go beyond the room that there is here.
            assert given[: len(output)] == output[: len(given)]
            if request_id not in self.aborted:
                num_known = len(request.output_token_ids)
                assert rig.ends[request_id] == end or num_known > len(output)
                assert len(given) == max(len(output), num_known)
                assert len(given_scores) == len(scores)

    def check_work(self) -> None:
        """Nothing is computed twice but after a preemption, nor left out but what was found."""
        rig = self.rig
        spans = rig.model.computed
        restarts = sum(count_restarts(of_one, rig.kv.block_size) for of_one in spans.values())
        assert restarts <= rig.scheduler.totals.num_preemptions
        for request_id, num_cached in rig.cached.items():
            num_prompt_tokens = len(self.accepted[request_id].prompt_token_ids)
            first = spans[request_id][0][0] if request_id in spans else 0
            assert num_cached == min(first, num_prompt_tokens)
        assert (rig.kv.usage, rig.scheduler.num_waiting_tokens) == (0.0, 0)


@settings(max_examples=300, deadline=None)
@given(rig=RIGS, schedule=SCHEDULES)
def test_any_schedule_of_events_gives_each_request_its_own_answer(
    rig: Rig, schedule: list[Add | int | str]
) -> None:
    play = Play(rig)
    for number, action in enumerate(schedule):
        play.act(number, action)
    rig.run()
    play.check_answers()
    play.check_work()


def random_event(rng: random.Random) -> Add | int | str:
    kind = rng.choice(["add", "add", "add", "step", "step", "steps", "abort", "other"])
    if kind == "abort":
        return rng.randrange(1_000)
    if kind == "other":
        return rng.choice(["reset", "step", "steps", "steps"])
    if kind != "add":
        return kind
    return Add(
        num_tokens=rng.randint(1, 40),
        params=make_params(
            max_tokens=rng.choice([None, 0, 1, rng.randint(1, 40)]),
            min_tokens=rng.choice([0, 0, 5]),
            prompt_logprobs=rng.choice([None, None, None, 0]),
            ignore_eos=rng.random() < 0.5,
            stop_token_ids=[rng.randrange(VOCAB_SIZE)],
        ),
        like=rng.choice("xyz"),
        num_shared=rng.randint(0, 40),
        num_known=rng.choice([0, 0, 0, 7]),
        priority=rng.choice([0, 0, 0, -1, 1]),
        cache_salt=rng.choice(["", "", "", "salt"]),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make_lookup", [PromptLookup, Guesses, always_right])
def test_a_thousand_random_events_lose_no_block_and_no_token(
    seed: int, make_lookup: Callable[[int], Lookup]
) -> None:
    rng = random.Random(seed)
    rig = Rig(
        num_blocks=40,
        max_num_seqs=12,
        max_num_batched_tokens=48,
        max_model_len=100,
        num_speculative_tokens=4,
        make_lookup=make_lookup,
    )
    play = Play(rig)
    for number in range(1_000):
        play.act(number, random_event(rng))
    rig.run(max_steps=20_000)
    play.check_answers()
    play.check_work()
    totals = rig.scheduler.totals
    assert totals.num_preemptions > 0
    assert totals.num_prefix_hits > 0
