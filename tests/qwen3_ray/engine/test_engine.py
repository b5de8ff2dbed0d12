"""The engine over an executor without a model, that reads its context back from its blocks."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.engine.engine import Engine
from qwen3_ray.errors import EngineError, PromptTooLongError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing import FakeExecutor, fake_logprobs, fake_next_token, make_fake_engine


def make_request(
    request_id: str, prompt: Sequence[int], *, max_tokens: int = 4, seed: int | None = 0
) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=seed)
    return GenerateRequest(request_id=request_id, prompt_token_ids=tuple(prompt), params=params)


def expected_output(request: GenerateRequest, vocab_size: int = 1000) -> list[int]:
    token_ids = list(request.prompt_token_ids)
    for _ in range(request.params.max_tokens or 0):
        token_ids.append(fake_next_token(token_ids, request.params.seed or 0, vocab_size))
    return token_ids[len(request.prompt_token_ids) :]


def run_out(engine: Engine) -> dict[str, list[TokenDelta]]:
    deltas: dict[str, list[TokenDelta]] = {}
    while engine.has_unfinished:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    engine.check_integrity()
    assert engine.stats().kv_cache_usage == 0
    return deltas


def tokens_of(deltas: Sequence[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def test_requests_join_a_running_batch_and_leave_it_one_by_one() -> None:
    executor = FakeExecutor()
    engine = make_fake_engine(executor, max_num_batched_tokens=8)
    first = make_request("a", range(5), max_tokens=5)
    second = make_request("b", range(100, 110), max_tokens=2)
    engine.add_request(first)
    deltas = engine.step()
    engine.add_request(second)
    deltas += [delta for _ in range(4) for delta in engine.step()]
    assert executor.steps == [
        {"a": 5},
        {"a": 1, "b": 7},
        {"a": 1, "b": 3},
        {"a": 1, "b": 1},
        {"a": 1},
    ]
    for request in (first, second):
        ours = [delta for delta in deltas if delta.request_id == request.request_id]
        assert tokens_of(ours) == expected_output(request)
        assert [delta.finish_reason for delta in ours][-1] is FinishReason.LENGTH
        assert {delta.finish_reason for delta in ours[:-1]} <= {None}
    assert not engine.has_unfinished
    stats = engine.stats()
    assert (stats.num_steps, stats.num_prompt_tokens, stats.num_generated_tokens) == (5, 15, 7)


def test_prompt_tokens_are_counted_when_they_are_computed() -> None:
    """Their rate tells clients when to come back: a burst of requests is no speed."""
    engine = make_fake_engine(FakeExecutor(), max_num_batched_tokens=8)
    engine.add_request(make_request("a", range(12), max_tokens=3))
    counts = [engine.stats().num_prompt_tokens]
    while engine.has_unfinished:
        engine.step()
        counts.append(engine.stats().num_prompt_tokens)
    assert counts == [0, 8, 12, 12, 12]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=9),
    num_blocks=st.integers(8, 20),
    max_num_batched_tokens=st.integers(4, 24),
    max_num_seqs=st.integers(1, 6),
)
def test_outputs_do_not_depend_on_batch_chunks_or_preemption(
    sizes: list[tuple[int, int]], num_blocks: int, max_num_batched_tokens: int, max_num_seqs: int
) -> None:
    engine = make_fake_engine(
        FakeExecutor(num_blocks=num_blocks, block_size=4),
        max_model_len=32,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    requests = [
        make_request(str(index), range(index, index + length), max_tokens=count, seed=index)
        for index, (length, count) in enumerate(sizes)
    ]
    for request in requests:
        engine.add_request(request)
    deltas = run_out(engine)
    for request in requests:
        assert tokens_of(deltas[request.request_id]) == expected_output(request)


def test_preemption_happens_and_leaves_no_trace_in_the_output() -> None:
    engine = make_fake_engine(FakeExecutor(num_blocks=8, block_size=4), max_model_len=32)
    requests = [make_request(str(i), range(i, i + 8), max_tokens=16, seed=i) for i in range(3)]
    for request in requests:
        engine.add_request(request)
    deltas = run_out(engine)
    assert engine.stats().num_preemptions > 0
    for request in requests:
        assert tokens_of(deltas[request.request_id]) == expected_output(request)


def test_an_aborted_request_leaves_its_blocks_to_others() -> None:
    engine = make_fake_engine(FakeExecutor(num_blocks=8), max_model_len=32)
    engine.add_request(make_request("a", range(16), max_tokens=16))
    engine.step()
    assert engine.stats().kv_cache_usage > 0
    assert engine.abort_request("a")
    assert not engine.abort_request("a")
    assert not engine.has_unfinished
    engine.check_integrity()
    assert engine.stats().kv_cache_usage == 0


def test_a_prefix_that_requests_share_is_computed_once_and_counted() -> None:
    executor = FakeExecutor()
    engine = make_fake_engine(executor)
    requests = [make_request(name, [*range(20), number]) for number, name in enumerate("abc")]
    for request in requests:
        engine.add_request(request)
    deltas = run_out(engine)
    assert [deltas[name][0].num_cached_tokens for name in "abc"] == [0, 20, 20]
    assert {delta.num_cached_tokens for name in "abc" for delta in deltas[name][1:]} == {None}
    stats = engine.stats()
    assert (stats.num_prefix_queries, stats.num_prefix_hits) == (63, 40)
    assert stats.num_prompt_tokens == 63 - 40
    for request in requests:
        assert tokens_of(deltas[request.request_id]) == expected_output(request)
    engine.reset_prefix_cache()
    engine.add_request(requests[0])
    assert run_out(engine)["a"][0].num_cached_tokens == 0


def test_choices_share_their_prompt_and_differ_in_their_tokens() -> None:
    engine = make_fake_engine()
    params = SamplingParams(max_tokens=5, seed=3, n=3)
    prompt = tuple(range(18))
    for choice in range(3):
        engine.add_request(
            GenerateRequest(
                request_id=str(choice), prompt_token_ids=prompt, params=params, choice=choice
            )
        )
    deltas = run_out(engine)
    for choice in range(3):
        token_ids = list(prompt)
        for _ in range(5):
            token_ids.append(fake_next_token(token_ids, 3, 1000, choice))
        assert tokens_of(deltas[str(choice)]) == token_ids[18:]
    assert engine.stats().num_prompt_tokens == 18 + 2 + 2
    assert len({tuple(tokens_of(deltas[str(choice)])) for choice in range(3)}) == 3


def test_an_engine_without_prefix_cache_finds_nothing() -> None:
    engine = make_fake_engine(enable_prefix_caching=False)
    for name in "ab":
        engine.add_request(make_request(name, range(20)))
    deltas = run_out(engine)
    assert [deltas[name][0].num_cached_tokens for name in "ab"] == [0, 0]
    assert engine.stats().num_prefix_hits == 0


def test_logprobs_of_prompt_and_output_come_with_their_tokens() -> None:
    engine = make_fake_engine(max_num_batched_tokens=8)
    params = SamplingParams(max_tokens=3, seed=1, logprobs=2, prompt_logprobs=1)
    request = GenerateRequest(request_id="a", prompt_token_ids=tuple(range(12)), params=params)
    engine.add_request(request)
    deltas = run_out(engine)["a"]
    token_ids = [*request.prompt_token_ids, *tokens_of(deltas)]
    assert [scored for delta in deltas for scored in delta.prompt_logprobs] == [
        fake_logprobs(token_ids[:index], token_ids[index], 1) for index in range(1, 12)
    ]
    assert [scored for delta in deltas for scored in delta.logprobs] == [
        fake_logprobs(token_ids[:index], token_ids[index], 2) for index in range(12, 15)
    ]
    assert [len(delta.prompt_logprobs) for delta in deltas] == [8, 3, 0, 0]


def test_a_resume_goes_on_where_its_output_ended() -> None:
    whole = make_request("a", range(10), max_tokens=8)
    output = expected_output(whole)
    for num_known in range(1, 9):
        engine = make_fake_engine()
        engine.add_request(replace(whole, output_token_ids=tuple(output[:num_known])))
        deltas = run_out(engine)["a"]
        assert tokens_of(deltas) == output[num_known:]
        assert deltas[-1].finish_reason is FinishReason.LENGTH
        assert engine.stats().num_steps == 8 - num_known


def test_a_block_that_holds_something_else_fails_the_step() -> None:
    executor = FakeExecutor()
    engine = make_fake_engine(executor)
    engine.add_request(make_request("a", range(6)))
    engine.step()
    executor._slots[executor._slots.index(max(executor._slots))] += 1
    with pytest.raises(EngineError, match="does not hold position"):
        run_out(engine)


def test_logits_that_are_not_finite_fail_their_request_alone() -> None:
    executor = FakeExecutor(nan_request_ids={"bad"})
    engine = make_fake_engine(executor)
    good = [make_request(name, range(4), seed=i) for i, name in enumerate(["x", "y"])]
    for request in (good[0], make_request("bad", [1, 2]), good[1]):
        engine.add_request(request)
    deltas = run_out(engine)
    (failure,) = deltas["bad"]
    assert failure.finish_reason is FinishReason.ERROR
    assert failure.token_ids == ()
    assert failure.error is not None
    assert "numerical error" in failure.error
    for request in good:
        assert tokens_of(deltas[request.request_id]) == expected_output(request)


def test_a_failing_step_is_an_engine_error() -> None:
    engine = make_fake_engine(FakeExecutor(fail_at_step=1))
    engine.add_request(make_request("a", [1]))
    engine.step()
    with pytest.raises(EngineError):
        engine.step()


def test_requests_that_cannot_be_served_are_refused() -> None:
    engine = make_fake_engine(max_model_len=8)
    engine.add_request(make_request("a", [1]))
    with pytest.raises(RequestError, match="being served"):
        engine.add_request(make_request("a", [1]))
    with pytest.raises(PromptTooLongError):
        engine.add_request(make_request("b", range(8)))
    with pytest.raises(RequestError, match="seed: must be drawn"):
        engine.add_request(make_request("c", [1], seed=None))
    assert list(run_out(engine)) == ["a"]


def test_a_step_without_work_is_nothing() -> None:
    executor = FakeExecutor()
    engine = make_fake_engine(executor)
    assert engine.step() == []
    assert executor.steps == []
    engine.close()
    assert executor.is_closed
