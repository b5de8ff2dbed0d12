"""Who gets the tokens of a step: streams, then prompts in fair shares; nobody waits for ever."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.core.token_budget import MAX_PARTIAL_PREFILLS, PROMPT_LOGPROB_ROWS
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import Rig, make_request, oracle

BUDGET = 512
STREAM = SamplingParams(max_tokens=None, ignore_eos=True)
ONE_TOKEN = SamplingParams(max_tokens=1)


class Bench:
    """A scheduler with room for everything, over a model that always says 1."""

    def __init__(
        self, *, num_blocks: int = 20_000, max_num_seqs: int = 256, budget: int = BUDGET
    ) -> None:
        self.budget = budget
        self.scheduler = Scheduler(
            kv=KVManager(num_blocks=num_blocks, block_size=16),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=40_000,
            eos_token_ids=frozenset(),
        )
        self.first_tokens: dict[str, int] = {}
        self.num_steps = 0
        self.num_rows = 0
        """Prompt logprobs of the last step."""

    def add(
        self,
        request_id: str,
        num_tokens: int,
        params: SamplingParams = ONE_TOKEN,
        *,
        priority: int = 0,
    ) -> None:
        # Prompts have nothing in common: each has numbers of its own.
        first = int.from_bytes(random.Random(request_id).randbytes(3), "little")
        self.scheduler.add(
            GenerateRequest(
                request_id=request_id,
                prompt_token_ids=tuple(range(first, first + num_tokens)),
                params=params,
                priority=priority,
            )
        )

    def step(self) -> Step:
        step = self.scheduler.schedule()
        assert step.num_tokens <= self.budget
        self.num_rows = sum(len(item.prompt_logprob_rows) for item in step.scheduled)
        assert self.num_rows <= PROMPT_LOGPROB_ROWS
        results = [Sampled((1,) if item.samples else ()) for item in step.scheduled]
        self.num_steps += 1
        for delta in self.scheduler.commit(step, results):
            if delta.token_ids:
                self.first_tokens.setdefault(delta.request_id, self.num_steps)
        return step

    def run_until(self, *request_ids: str, most: int = 1_000) -> None:
        while not all(request_id in self.first_tokens for request_id in request_ids):
            assert self.num_steps < most, "no first token"
            self.step()


def parts(step: Step) -> dict[str, int]:
    return {item.request.request_id: item.num_new_tokens for item in step.scheduled}


def test_a_prompt_of_32768_tokens_takes_no_step_from_running_streams_and_wastes_nothing() -> None:
    bench = Bench()
    streams = [f"stream {number}" for number in range(8)]
    for name in streams:
        bench.add(name, 10, STREAM)
    bench.run_until(*streams)
    bench.add("long", 32_768)
    num_left = 32_768
    while num_left > 0:
        step = parts(bench.step())
        assert [step[name] for name in streams] == [1] * 8
        assert step["long"] == min(num_left, BUDGET - 8)
        num_left -= step["long"]
    assert "long" in bench.first_tokens


def test_a_short_prompt_behind_a_long_one_gets_its_first_token_in_the_next_step() -> None:
    bench = Bench()
    bench.add("long", 32_768)
    bench.step()
    bench.add("short", 400)
    bench.step()
    assert bench.first_tokens == {"short": 2}


def test_a_short_prompt_goes_past_any_number_of_long_ones() -> None:
    bench = Bench()
    for number in range(20):
        bench.add(f"long {number}", 5_000)
    for _ in range(10):
        bench.step()
    assert bench.scheduler.num_running == MAX_PARTIAL_PREFILLS
    bench.add("short", BUDGET // (MAX_PARTIAL_PREFILLS + 1))
    bench.step()
    assert bench.first_tokens == {"short": 11}


def test_prompts_that_come_together_are_done_one_after_the_other() -> None:
    """Their median first token comes at half the time of the last one, not with it."""
    bench = Bench()
    names = [str(number) for number in range(16)]
    for name in names:
        bench.add(name, 128)
    bench.run_until(*names)
    assert [bench.first_tokens[name] for name in names] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_endless_short_prompts_leave_a_long_one_its_share() -> None:
    bench = Bench()
    bench.add("long", 5_000)
    share = BUDGET // (MAX_PARTIAL_PREFILLS + 1)
    for number in itertools.count():
        for index in range(10):
            bench.add(f"short {number} {index}", 100)
        step = parts(bench.step())
        if "long" in bench.first_tokens:
            break
        assert step["long"] >= share
        assert sum(step.values()) == BUDGET


def test_endless_short_prompts_do_not_keep_a_waiting_long_one_from_a_place() -> None:
    bench = Bench()
    longs = [f"long {number}" for number in range(MAX_PARTIAL_PREFILLS + 3)]
    for name in longs:
        bench.add(name, 2_000)
    for number in range(200):
        for index in range(8):
            bench.add(f"short {number} {index}", 90)
        bench.step()
        if all(name in bench.first_tokens for name in longs):
            break
    firsts = [bench.first_tokens[name] for name in longs]
    assert firsts == sorted(firsts)


def test_a_more_urgent_request_goes_first_and_a_less_urgent_one_last() -> None:
    bench = Bench()
    bench.add("busy", 2_000)
    bench.step()
    for name, priority in (("late", 5), ("usual", 0), ("urgent", -5)):
        bench.add(name, 600, priority=priority)
    bench.run_until("late", "usual", "urgent", "busy")
    firsts = bench.first_tokens
    assert firsts["urgent"] < firsts["usual"] < firsts["late"]
    assert firsts["urgent"] <= 3
    assert firsts["busy"] < firsts["late"]


def test_a_long_urgent_prompt_takes_the_place_of_a_less_urgent_one() -> None:
    bench = Bench()
    usual = [f"usual {number}" for number in range(MAX_PARTIAL_PREFILLS)]
    for name in usual:
        bench.add(name, 9_000)
        bench.step()
    bench.add("urgent", 1_500, priority=-1)
    assert parts(bench.step()) == {"urgent": BUDGET}
    assert bench.scheduler.totals.num_preemptions == 1
    bench.run_until("urgent", most=7)
    bench.run_until(*usual)


def test_the_least_urgent_request_loses_its_blocks_first() -> None:
    rig = Rig(num_blocks=7, max_num_batched_tokens=32)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    requests = [
        make_request("late", 6, params, priority=1),
        make_request("a", 6, params),
        make_request("b", 6, params),
    ]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert rig.scheduler.totals.num_preemptions > 0
    assert rig.finish_steps["a"] < rig.finish_steps["late"]
    assert rig.finish_steps["b"] < rig.finish_steps["late"]
    for request in requests:
        assert rig.tokens[request.request_id] == oracle(request, rig.max_len)[0]


def test_a_preempted_request_keeps_its_arrival() -> None:
    rig = Rig(num_blocks=6, block_size=4, max_num_seqs=2)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    for name in ("a", "b", "never ran"):
        rig.scheduler.add(make_request(name, 8, params))
    while rig.scheduler.totals.num_preemptions == 0:
        rig.step()
    rig.scheduler.add(make_request("new", 4, params))
    rig.run()
    order = [rig.finish_steps[name] for name in ("a", "b", "never ran", "new")]
    assert order == sorted(order)


def test_a_scored_prompt_takes_128_rows_of_a_step_and_leaves_the_rest_to_others() -> None:
    bench = Bench()
    scored = SamplingParams(max_tokens=0, prompt_logprobs=0)
    for number in range(3):
        bench.add(f"scored {number}", 1_000, scored)
    bench.add("other", 3_000)
    for _ in range(12):
        step = bench.step()
        assert bench.num_rows == PROMPT_LOGPROB_ROWS
        assert step.num_tokens == BUDGET or bench.num_steps == 1 or "other" in bench.first_tokens
    bench.run_until("other")
    while bench.scheduler.has_unfinished:
        bench.step()
    assert bench.num_steps == -(-3 * 999 // PROMPT_LOGPROB_ROWS)


def test_prompts_that_need_no_rows_go_past_those_that_wait_for_rows() -> None:
    bench = Bench()
    scored = SamplingParams(max_tokens=1, prompt_logprobs=0)
    for number in range(200):
        bench.add(f"scored {number}", 33, scored)
    bench.add("plain", 50)
    bench.run_until("plain")
    assert bench.num_steps == 1
    bench.run_until(*(f"scored {number}" for number in range(200)))
    assert bench.num_steps == 200 * 32 / PROMPT_LOGPROB_ROWS


PROMPTS = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps before it comes
        st.one_of(st.integers(1, 60), st.integers(1, 900)),
        st.sampled_from([1, 1, 3, 30]),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(
    prompts=PROMPTS,
    budget=st.one_of(st.integers(8, 120), st.integers(PROMPT_LOGPROB_ROWS, 600)),
    max_num_seqs=st.integers(1, 8),
)
def test_no_token_is_wasted_while_a_prompt_waits_and_every_prompt_gets_on(
    prompts: list[tuple[int, int, int, bool]], budget: int, max_num_seqs: int
) -> None:
    bench = Bench(budget=budget, max_num_seqs=max_num_seqs, num_blocks=1_000)
    arrivals = [
        (
            sum(delay for delay, *_ in prompts[: number + 1]),
            f"{number}",
            num_tokens,
            SamplingParams(max_tokens=max_tokens, prompt_logprobs=0 if scored else None),
        )
        for number, (_, num_tokens, max_tokens, scored) in enumerate(prompts)
    ]
    idle_since: dict[str, int] = {}
    while arrivals or bench.scheduler.has_unfinished:
        while arrivals and arrivals[0][0] <= bench.num_steps:
            bench.add(*arrivals.pop(0)[1:])
        step = bench.step()
        check_no_waste(bench, step, max_num_seqs)
        check_progress(bench, step, idle_since)
    bench.scheduler.check_integrity()


def check_no_waste(bench: Bench, step: Step, max_num_seqs: int) -> None:
    if step.num_tokens == bench.budget:
        return

    def could_go_on(request: RequestState) -> bool:
        """Whether it has to compute more than one token, and rows are left if it needs them."""
        is_scored = request.num_prompt_logprobs_left > 0
        return request.num_pending_tokens > 1 and (
            not is_scored or bench.num_rows < PROMPT_LOGPROB_ROWS
        )

    table = bench.scheduler._table
    before = {item.request.request_id for item in step.scheduled}
    assert not any(
        could_go_on(request) for request in table.running if request.num_output_tokens == 0
    )
    assert len(before) == max_num_seqs or not any(map(could_go_on, table.waiting))


def check_progress(bench: Bench, step: Step, idle_since: dict[str, int]) -> None:
    """No running request is left out for long: at least every tenth step does something for it."""
    served = parts(step)
    for request in bench.scheduler._table.running:
        if request.request_id in served:
            idle_since[request.request_id] = bench.num_steps
        since = idle_since.setdefault(request.request_id, bench.num_steps)
        assert bench.num_steps - since <= 10
