"""The scheduler's rules, one by one."""

import pytest

from qwen3_ray.core.step import Sampled
from qwen3_ray.errors import EngineError, PromptTooLongError, RequestError
from qwen3_ray.request import FinishReason, TokenDelta
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.core.rig import EOS, Rig, count_restarts, make_request, oracle


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
        num_samples.append(sum(item.num_sampled_rows for item in step.scheduled))
        rig.scheduler.commit(step, rig.model.execute(step))
    assert num_samples == [0, 0, 1]


def test_the_youngest_loses_its_blocks_and_continues_as_if_nothing_had_happened() -> None:
    rig = Rig(num_blocks=9, block_size=4, max_num_batched_tokens=32)
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    requests = [make_request(name, 7, params) for name in ("a", "b", "c")]
    for request in requests:
        rig.scheduler.add(request)
    rig.run()
    assert rig.scheduler.totals.num_preemptions > 0
    restarts = {name: count_restarts(spans, 4) for name, spans in rig.model.computed.items()}
    assert restarts["a"] == 0
    assert restarts["c"] > 0
    # A resume recomputes the output too, where the prefix cache has lost it.
    assert any(end > start + 1 and end > 7 for start, end in rig.model.computed["c"])
    for request in requests:
        assert rig.tokens[request.request_id] == oracle(request, rig.max_len)[0]


def test_a_preempted_request_goes_before_those_that_never_ran() -> None:
    rig = Rig(num_blocks=4, block_size=4, max_num_seqs=2)
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    for name in ("a", "b", "never ran"):
        rig.scheduler.add(make_request(name, 6, params))
    while rig.scheduler.totals.num_preemptions == 0:
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
    assert rig.scheduler.totals.num_preemptions == 0


def test_nobody_overtakes_a_request_that_waits_for_blocks() -> None:
    rig = Rig(num_blocks=6, block_size=4, max_num_batched_tokens=32)
    rig.scheduler.add(make_request("a", 8, SamplingParams(max_tokens=4, ignore_eos=True)))
    rig.step()
    rig.scheduler.add(make_request("large", 16, SamplingParams(max_tokens=1)))
    rig.scheduler.add(make_request("small", 2, SamplingParams(max_tokens=1)))
    rig.step()
    assert rig.scheduler.num_waiting == 2
    rig.run()
    assert rig.first_token_steps["large"] <= rig.first_token_steps["small"]


def test_a_request_alone_is_bounded_by_the_kv_cache() -> None:
    rig = Rig(num_blocks=3, block_size=4)
    rig.scheduler.add(make_request("a", 5, SamplingParams(max_tokens=None, ignore_eos=True)))
    rig.run()
    assert len(rig.tokens["a"]) == 12 - 5
    assert rig.ends["a"] == (FinishReason.LENGTH, None)
    assert rig.scheduler.totals.num_preemptions == 0


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
    (delta,) = rig.scheduler.commit(rig.scheduler.schedule(), [Sampled((sampled,))])
    assert delta == TokenDelta(
        request_id="a",
        token_ids=(sampled,),
        num_cached_tokens=0,
        finish_reason=end[0],
        stop_reason=end[1],
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
    # The first step computes all of "b" and 5 tokens of "a"; the next ones a token of "b" and 9 of
    # "a". The last token of a running request counts for nothing: a decode always has one.
    assert seen == [30, 19, 10, 1, 0]


def test_aborting_a_preempted_request_forgets_it() -> None:
    rig = Rig(num_blocks=4, block_size=4)
    for name in ("a", "b"):
        rig.scheduler.add(make_request(name, 6))
    while rig.scheduler.totals.num_preemptions == 0:
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
    with pytest.raises(EngineError, match="2 results came for 1 requests"):
        rig.scheduler.commit(step, [Sampled((1,)), Sampled((2,))])
    assert len(rig.scheduler.commit(step, [Sampled((1,))])) == 1


def test_an_idle_scheduler_plans_nothing() -> None:
    step = Rig().scheduler.schedule()
    assert (step.scheduled, step.num_tokens) == ((), 0)


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
    while rig.scheduler.totals.num_preemptions == 0:
        rig.step()
    preempted.block_ids.append(0)
    with pytest.raises(EngineError, match="b waits, but holds KV blocks"):
        rig.scheduler.check_integrity()
    preempted.block_ids.clear()
    preempted.token_ids.append(1)
    with pytest.raises(EngineError, match="waiting tokens are counted"):
        rig.scheduler.check_integrity()
