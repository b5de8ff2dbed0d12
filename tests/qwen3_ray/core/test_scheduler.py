"""The scheduler against an oracle: a model whose next token is a hash of what its cache holds.

The fake model writes every computed token into its block and slot, and samples from what it reads
back through the block ids. So a block that is lost, shared or reused too early, a position left
out or computed twice, or a prompt recomputed wrongly, changes tokens.
"""

import random
import time
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.scheduler import ScheduledRequest, Scheduler, Step
from qwen3_ray.errors import EngineError, PromptTooLongError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.sampling_params import SamplingParams

VOCAB_SIZE = 50
EOS = 7
Slot = tuple[int, int]


def next_token(context: list[int]) -> int:
    return zlib.crc32(bytes(context)) % VOCAB_SIZE


class FakeModel:
    """Executes steps on a paged cache of (position, token id), and keeps a log of the work."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cache: list[list[Slot]] = [[(-1, -1)] * block_size for _ in range(num_blocks)]
        self.computed: dict[str, list[tuple[int, int]]] = {}

    def execute(self, step: Step) -> list[int]:
        for item in step.scheduled:
            self._write(item)
        return [next_token(self._read(item)) for item in step.scheduled if item.samples]

    def _write(self, item: ScheduledRequest) -> None:
        request = item.request
        start = request.num_computed_tokens
        end = start + item.num_new_tokens
        self.computed.setdefault(request.request_id, []).append((start, end))
        for position in range(start, end):
            block_id = request.block_ids[position // self.block_size]
            slot = (position, request.token_ids[position])
            self.cache[block_id][position % self.block_size] = slot

    def _read(self, item: ScheduledRequest) -> list[int]:
        num_tokens = item.request.num_tokens
        slots = [slot for block_id in item.request.block_ids for slot in self.cache[block_id]]
        assert [position for position, _ in slots[:num_tokens]] == list(range(num_tokens))
        return [token_id for _, token_id in slots[:num_tokens]]


class Rig:
    """A scheduler with its fake model, checked after each step."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 1_000,
    ) -> None:
        self.kv = KVManager(num_blocks=num_blocks, block_size=block_size)
        self.model = FakeModel(num_blocks, block_size)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.max_len = min(max_model_len, self.kv.capacity)
        self.scheduler = Scheduler(
            kv=self.kv,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_token_ids=frozenset({EOS}),
        )
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, tuple[FinishReason, int | str | None]] = {}
        self.finish_steps: dict[str, int] = {}
        self.num_steps = 0

    def step(self) -> Step:
        step = self.scheduler.schedule()
        assert step.num_tokens <= self.max_num_batched_tokens
        assert self.scheduler.num_running <= self.max_num_seqs
        assert bool(step.scheduled) == self.scheduler.has_unfinished
        self.num_steps += 1
        for delta in self.scheduler.commit(step, self.model.execute(step)):
            self._note(delta)
        self.scheduler.check_integrity()
        return step

    def _note(self, delta: TokenDelta) -> None:
        assert delta.request_id not in self.ends, "tokens after the end"
        self.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            self.ends[delta.request_id] = (delta.finish_reason, delta.stop_reason)
            self.finish_steps[delta.request_id] = self.num_steps

    def run(self, max_steps: int = 5_000) -> None:
        while self.scheduler.has_unfinished:
            assert self.num_steps < max_steps, "no end"
            self.step()


def make_request(
    request_id: str, num_tokens: int, params: SamplingParams | None = None
) -> GenerateRequest:
    rng = random.Random(request_id)
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=tuple(rng.randrange(VOCAB_SIZE) for _ in range(num_tokens)),
        params=params or SamplingParams(ignore_eos=True),
    )


def oracle(
    request: GenerateRequest, max_len: int
) -> tuple[list[int], tuple[FinishReason, int | None]]:
    """What a request gives alone, by definition: no cache, no batch, no blocks."""
    context, output = list(request.prompt_token_ids), list[int]()
    params = request.params
    while True:
        token_id = next_token(context)
        context.append(token_id)
        output.append(token_id)
        if token_id == EOS and not params.ignore_eos:
            return output, (FinishReason.STOP, None)
        if token_id in params.stop_token_ids:
            return output, (FinishReason.STOP, token_id)
        if len(output) == params.max_tokens or len(context) == max_len:
            return output, (FinishReason.LENGTH, None)


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.one_of(st.none(), st.integers(1, 30)),
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2),
)
RIGS = st.builds(
    Rig,
    num_blocks=st.integers(6, 12),
    block_size=st.sampled_from([1, 2, 4]),
    max_num_seqs=st.integers(2, 6),
    max_num_batched_tokens=st.integers(6, 20),
    max_model_len=st.integers(12, 48),
)
ADD = st.tuples(st.integers(0, 14), PARAMS)
ABORT = st.integers(0, 50)
STEPS = st.sampled_from(["step", "steps"])
SCHEDULES = st.lists(st.one_of(ADD, ADD, ADD, STEPS, STEPS, ABORT), min_size=8, max_size=40)


def check_contiguous(spans: list[tuple[int, int]]) -> int:
    """Spans continue one another, or restart at 0. Returns the number of restarts."""
    assert spans[0][0] == 0
    num_restarts = 0
    for (_, end), (start, _) in pairwise(spans):
        assert start in {0, end}
        num_restarts += start == 0
    return num_restarts


@settings(max_examples=300, deadline=None)
@given(rig=RIGS, schedule=SCHEDULES)
def test_any_schedule_of_adds_aborts_and_steps_gives_each_request_its_own_answer(
    rig: Rig, schedule: list[tuple[int, SamplingParams] | int | str]
) -> None:
    accepted: dict[str, GenerateRequest] = {}
    aborted: set[str] = set()
    for number, action in enumerate(schedule):
        if isinstance(action, tuple):
            request = make_request(str(number), *action)
            if 1 <= action[0] < rig.max_len:
                rig.scheduler.add(request)
                accepted[request.request_id] = request
            else:
                with pytest.raises(RequestError):
                    rig.scheduler.add(request)
        elif isinstance(action, int) and accepted:
            request_id = list(accepted)[action % len(accepted)]
            unfinished = request_id not in rig.ends and request_id not in aborted
            assert rig.scheduler.abort(request_id) == unfinished
            if unfinished:
                aborted.add(request_id)
        else:
            for _ in range(1 if action == "step" else 5):
                rig.step()
        rig.scheduler.check_integrity()
    rig.run()

    assert set(rig.ends) == set(accepted) - aborted
    for request_id, request in accepted.items():
        output, end = oracle(request, rig.max_len)
        given = rig.tokens.get(request_id, [])
        assert given == output[: len(given)]
        if request_id not in aborted:
            assert (given, rig.ends[request_id]) == (output, end)
    restarts = sum(check_contiguous(spans) for spans in rig.model.computed.values())
    assert restarts <= rig.scheduler.num_preemptions
    assert (rig.kv.usage, rig.scheduler.num_waiting_tokens) == (0.0, 0)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=8), num_blocks=st.integers(7, 12))
def test_equal_output_lengths_finish_in_the_order_of_arrival(
    lengths: list[int], num_blocks: int
) -> None:
    rig = Rig(num_blocks=num_blocks, max_num_seqs=3)
    for number, length in enumerate(lengths):
        rig.scheduler.add(
            make_request(str(number), length, SamplingParams(max_tokens=5, ignore_eos=True))
        )
    rig.run()
    order = [rig.finish_steps[str(number)] for number in range(len(lengths))]
    assert order == sorted(order)


def test_endless_new_requests_do_not_starve_an_old_long_one() -> None:
    rig = Rig(num_blocks=10, max_num_seqs=4)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    rig.scheduler.add(make_request("first", 12, params))
    rig.scheduler.add(make_request("old", 16, params))
    for number in range(200):
        rig.scheduler.add(make_request(f"new {number}", 3, params))
        rig.step()
        if "old" in rig.ends:
            break
    assert len(rig.tokens["old"]) == 20


def test_a_step_mixes_decodes_with_a_chunk_of_a_prompt() -> None:
    rig = Rig(max_num_batched_tokens=10)
    rig.scheduler.add(make_request("a", 4))
    rig.step()
    rig.scheduler.add(make_request("b", 20))
    step = rig.step()
    parts = [(item.request.request_id, item.num_new_tokens) for item in step.scheduled]
    assert parts == [("a", 1), ("b", 9)]
    rig.run()
    assert rig.model.computed["b"][:3] == [(0, 9), (9, 18), (18, 20)]


def test_only_the_last_chunk_of_a_prompt_samples() -> None:
    rig = Rig(max_num_batched_tokens=8)
    rig.scheduler.add(make_request("a", 17, SamplingParams(max_tokens=1)))
    num_samples = []
    while rig.scheduler.has_unfinished:
        step = rig.scheduler.schedule()
        num_samples.append(step.num_samples)
        rig.scheduler.commit(step, rig.model.execute(step))
    assert num_samples == [0, 0, 1]


def test_the_youngest_loses_its_blocks_and_continues_as_if_nothing_had_happened() -> None:
    rig = Rig(num_blocks=9, block_size=4, max_num_batched_tokens=32)
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    requests = [make_request(name, 7, params) for name in ("a", "b", "c")]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert rig.scheduler.num_preemptions > 0
    restarts = {name: check_contiguous(spans) for name, spans in rig.model.computed.items()}
    assert restarts["a"] == 0
    assert restarts["c"] > 0
    # A resume recomputes the output too: its first span ends beyond the prompt.
    assert any(start == 0 and end > 7 for start, end in rig.model.computed["c"])
    for request in requests:
        assert rig.tokens[request.request_id] == oracle(request, rig.max_len)[0]


def test_a_preempted_request_goes_before_those_that_never_ran() -> None:
    rig = Rig(num_blocks=4, block_size=4, max_num_seqs=2)
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    for name in ("a", "b", "never ran"):
        rig.scheduler.add(make_request(name, 6, params))
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    assert rig.scheduler.num_waiting == 2
    rig.run()
    assert rig.finish_steps["b"] < rig.finish_steps["never ran"]


def test_a_request_waits_until_all_its_tokens_fit_rather_than_be_preempted_in_its_prompt() -> None:
    rig = Rig(num_blocks=6, block_size=4, max_num_batched_tokens=8)
    rig.scheduler.add(make_request("a", 8, SamplingParams(max_tokens=4, ignore_eos=True)))
    rig.step()
    rig.scheduler.add(make_request("b", 16))
    rig.step()
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (1, 1)
    rig.run()
    assert rig.scheduler.num_preemptions == 0


def test_a_request_alone_is_bounded_by_the_kv_cache() -> None:
    rig = Rig(num_blocks=3, block_size=4)
    rig.scheduler.add(make_request("a", 5, SamplingParams(max_tokens=None, ignore_eos=True)))
    rig.run()
    assert len(rig.tokens["a"]) == 12 - 5
    assert rig.ends["a"] == (FinishReason.LENGTH, None)
    assert rig.scheduler.num_preemptions == 0


def test_the_context_bounds_prompt_and_output_together() -> None:
    rig = Rig(max_model_len=20)
    rig.scheduler.add(make_request("a", 15, SamplingParams(max_tokens=None, ignore_eos=True)))
    rig.run()
    assert len(rig.tokens["a"]) == 5
    assert rig.ends["a"] == (FinishReason.LENGTH, None)


@pytest.mark.parametrize(
    ("params", "sampled", "end"),
    [
        (SamplingParams(), EOS, (FinishReason.STOP, None)),
        (SamplingParams(stop_token_ids=[EOS]), EOS, (FinishReason.STOP, None)),
        (SamplingParams(ignore_eos=True), EOS, (None, None)),
        (SamplingParams(ignore_eos=True, stop_token_ids=[EOS]), EOS, (FinishReason.STOP, EOS)),
        (SamplingParams(stop_token_ids=[3, 9]), 9, (FinishReason.STOP, 9)),
        (SamplingParams(stop_token_ids=[9], max_tokens=1), 9, (FinishReason.STOP, 9)),
        (SamplingParams(max_tokens=1), 9, (FinishReason.LENGTH, None)),
        (SamplingParams(max_tokens=2), 9, (None, None)),
    ],
    ids=str,
)
def test_an_output_ends_for_the_first_reason_that_holds(
    params: SamplingParams, sampled: int, end: tuple[FinishReason | None, int | None]
) -> None:
    rig = Rig()
    rig.scheduler.add(make_request("a", 3, params))
    (delta,) = rig.scheduler.commit(rig.scheduler.schedule(), [sampled])
    assert delta == TokenDelta(
        request_id="a", token_ids=(sampled,), finish_reason=end[0], stop_reason=end[1]
    )
    assert rig.scheduler.has_unfinished == (end[0] is None)
    assert (rig.kv.usage > 0) == (end[0] is None)


@pytest.mark.parametrize(
    ("num_tokens", "error", "words"),
    [
        (0, RequestError, "at least one token"),
        (20, PromptTooLongError, "at most 19 fit the context of 20"),
        (25, PromptTooLongError, "at most 19 fit the context of 20"),
    ],
)
def test_a_prompt_that_cannot_fit_the_context_is_refused(
    num_tokens: int, error: type[RequestError], words: str
) -> None:
    rig = Rig(max_model_len=20)
    with pytest.raises(error, match=words) as info:
        rig.scheduler.add(make_request("a", num_tokens))
    assert info.value.param == "prompt"
    assert not rig.scheduler.has_unfinished
    rig.scheduler.add(make_request("a", 19))


def test_a_prompt_that_cannot_fit_the_kv_cache_is_refused() -> None:
    rig = Rig(num_blocks=3, block_size=4)
    with pytest.raises(PromptTooLongError, match="at most 11 fit the KV cache"):
        rig.scheduler.add(make_request("a", 12))
    rig.scheduler.add(make_request("a", 11))
    rig.run()
    assert rig.ends["a"] == (FinishReason.LENGTH, None)


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    rig = Rig()
    rig.scheduler.add(make_request("a", 3))
    with pytest.raises(RequestError, match="'a' is being served"):
        rig.scheduler.add(make_request("a", 3))
    rig.step()
    with pytest.raises(RequestError, match="'a' is being served"):
        rig.scheduler.add(make_request("a", 3))
    rig.run()
    rig.scheduler.add(make_request("a", 3))


def test_waiting_tokens_are_the_prefill_work_that_is_left() -> None:
    rig = Rig(max_num_batched_tokens=10)
    rig.scheduler.add(make_request("a", 25))
    rig.scheduler.add(make_request("b", 5))
    seen = [rig.scheduler.num_waiting_tokens]
    for _ in range(4):
        rig.step()
        seen.append(rig.scheduler.num_waiting_tokens)
    # The last token of a running request counts for nothing: a decode always has one.
    assert seen == [30, 14 + 5, 4 + 5, 0, 0]


def test_aborting_a_preempted_request_forgets_it() -> None:
    rig = Rig(num_blocks=4, block_size=4)
    for name in ("a", "b"):
        rig.scheduler.add(make_request(name, 6))
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    assert rig.scheduler.abort("b")
    assert not rig.scheduler.abort("b")
    rig.run()
    assert set(rig.ends) == {"a"}


def test_a_plan_that_was_not_committed_is_planned_again() -> None:
    rig = Rig(num_blocks=5, block_size=4)
    requests = [make_request(name, 6) for name in ("a", "b")]
    for request in requests:
        rig.scheduler.add(request)
    while rig.scheduler.has_unfinished:
        rig.scheduler.schedule()
        rig.scheduler.check_integrity()
        rig.step()
    for request in requests:
        assert rig.tokens[request.request_id] == oracle(request, rig.max_len)[0]


def test_a_wrong_number_of_sampled_ids_changes_nothing() -> None:
    rig = Rig()
    rig.scheduler.add(make_request("a", 3))
    step = rig.scheduler.schedule()
    with pytest.raises(EngineError, match="2 ids were sampled for 1 requests"):
        rig.scheduler.commit(step, [1, 2])
    assert len(rig.scheduler.commit(step, [1])) == 1


def test_an_idle_scheduler_plans_nothing() -> None:
    step = Rig().scheduler.schedule()
    assert (step.scheduled, step.num_tokens, step.num_samples) == ((), 0, 0)


def test_integrity_notices_a_running_request_without_work() -> None:
    rig = Rig()
    rig.scheduler.add(make_request("a", 3))
    rig.scheduler.schedule().scheduled[0].request.num_computed_tokens = 3
    with pytest.raises(EngineError, match="a runs, but has nothing to compute"):
        rig.scheduler.check_integrity()


def test_integrity_notices_a_waiting_request_that_holds_blocks_or_changed() -> None:
    rig = Rig(num_blocks=4, block_size=4)
    for name in ("a", "b"):
        rig.scheduler.add(make_request(name, 6))
    preempted = rig.step().scheduled[1].request
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    preempted.block_ids.append(0)
    with pytest.raises(EngineError, match="b waits, but holds KV blocks"):
        rig.scheduler.check_integrity()
    preempted.block_ids.clear()
    preempted.token_ids.append(1)
    with pytest.raises(EngineError, match="waiting tokens are counted"):
        rig.scheduler.check_integrity()


def decoding(num_requests: int) -> Scheduler:
    """A scheduler in which `num_requests` decode."""
    scheduler = Scheduler(
        kv=KVManager(num_blocks=num_requests * 2, block_size=64),
        max_num_seqs=num_requests,
        max_num_batched_tokens=num_requests * 4,
        max_model_len=10_000,
        eos_token_ids=frozenset(),
    )
    for number in range(num_requests):
        scheduler.add(make_request(str(number), 4, SamplingParams(max_tokens=None)))
    scheduler.commit(scheduler.schedule(), [1] * num_requests)
    assert scheduler.num_running == num_requests
    return scheduler


def schedule_seconds(num_requests: int) -> float:
    scheduler = decoding(num_requests)

    def plan() -> None:
        assert scheduler.schedule().num_tokens == num_requests

    return min(timed(plan) for _ in range(20))


def abort_seconds(num_requests: int) -> float:
    scheduler = decoding(num_requests)

    def abort_all() -> None:
        assert all(scheduler.abort(str(number)) for number in range(num_requests))

    return timed(abort_all)


def timed(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


@pytest.mark.parametrize("seconds", [schedule_seconds, abort_seconds])
def test_cost_grows_in_proportion_to_the_requests(seconds: Callable[[int], float]) -> None:
    # Processor time, and the best of several attempts: other work on the machine only adds to it.
    ratios = []
    for _ in range(5):
        best = {n: min(seconds(n) for _ in range(3)) for n in (256, 1_024)}
        ratios.append(best[1_024] / best[256])
        if ratios[-1] <= 6:
            return
    pytest.fail(f"1,024 requests cost {ratios} times as much as 256")
