"""Steps that run ahead give the tokens of a request alone, whatever else happens."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.engine.run_ahead import RunAhead
from qwen3_ray.errors import EngineError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.runner.device_stream import DeviceStream, InlineStream, Work
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.fake_device import NAN_TOKEN, LazyStream
from tests.qwen3_ray.runner.graphs_rig import GREEDY, GraphEngine, make_request, oracle

KINDS = (
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "seed": 4, "top_k": 1},
    {"temperature": 1.0, "seed": 5, "ignore_eos": True},
    {"temperature": 0.0, "presence_penalty": 0.5},  # cannot be sampled simply
)


class Add(NamedTuple):
    num_tokens: int
    max_tokens: int | None
    kind: int
    like: int
    priority: int

    def request(self, request_id: str) -> GenerateRequest:
        params = SamplingParams(**{"seed": 0, "max_tokens": self.max_tokens} | KINDS[self.kind])
        request = make_request(request_id, self.num_tokens, params, like=self.like)
        return GenerateRequest(
            request_id=request_id,
            prompt_token_ids=request.prompt_token_ids,
            params=params,
            priority=self.priority,
        )


ADD = st.builds(
    Add,
    num_tokens=st.integers(1, 20),
    max_tokens=st.one_of(st.none(), st.integers(1, 12)),
    kind=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 3, 4]),
    like=st.integers(0, 1),
    priority=st.sampled_from([0, 0, 0, -1]),
)
ACTIONS = st.lists(
    st.one_of(ADD, ADD, st.integers(0, 20), st.sampled_from(["step", "step", "steps", "reset"])),
    min_size=4,
    max_size=24,
)


def play(engine: GraphEngine, actions: Sequence[Add | int | str]) -> None:
    requests: dict[str, GenerateRequest] = {}
    aborted: set[str] = set()
    for number, action in enumerate(actions):
        if isinstance(action, Add):
            requests[str(number)] = action.request(str(number))
            engine.engine.add_request(requests[str(number)])
        elif isinstance(action, int):
            if engine.engine.abort_request(str(action)):
                aborted.add(str(action))
        elif action == "reset":
            engine.engine.reset_prefix_cache()
        else:
            for _ in range(1 if action == "step" else 4):
                if engine.engine.has_unfinished:
                    engine.step()
    engine.run()
    for request_id, request in requests.items():
        expected = oracle(request, min(24, engine.engine.info.max_model_len))
        got = engine.tokens.get(request_id, [])
        assert got == (expected[: len(got)] if request_id in aborted else expected)


@settings(max_examples=100, deadline=None)
@given(
    actions=ACTIONS,
    num_blocks=st.sampled_from([6, 8, 12, 40]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 24),
    num_speculative_tokens=st.sampled_from([0, 0, 2]),
    stream=st.sampled_from([InlineStream, LazyStream]),
)
def test_tokens_are_those_of_each_request_alone(
    actions: list[Add | int | str],
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    num_speculative_tokens: int,
    stream: type[DeviceStream],
) -> None:
    engine = GraphEngine(
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_speculative_tokens=num_speculative_tokens,
        stream=stream(),
    )
    play(engine, actions)


def test_a_steady_step_is_one_replay_and_no_copy() -> None:
    engine = GraphEngine(block_size=24, num_blocks=4)
    for index in range(3):
        engine.engine.add_request(make_request(str(index), 2 + index, GREEDY))
    engine.step()  # prompts, and the first step ahead
    graphs = engine.graphs
    copies, replays = graphs.decodes.num_copies, graphs.num_replays
    for count in range(1, 10):
        engine.step()
        assert (graphs.decodes.num_copies, graphs.num_replays) == (copies, replays + count)
    assert graphs.prompts.num_copies == 1
    assert engine.runner.num_steps == 0


def test_new_blocks_are_all_that_is_sent_at_a_block_border() -> None:
    engine = GraphEngine(block_size=4, num_blocks=20)
    engine.engine.add_request(make_request("a", 2, GREEDY))
    engine.step()
    before = engine.graphs.decodes.num_copies
    for _ in range(16):
        engine.step()
    assert engine.graphs.decodes.num_copies == before + 4
    assert engine.graphs.num_replays == 18  # one is under way


def test_a_newcomer_is_computed_beside_the_step_that_is_under_way() -> None:
    engine = GraphEngine()
    engine.engine.add_request(make_request("a", 3, GREEDY))
    engine.step()
    engine.step()
    engine.engine.add_request(make_request("b", 5, GREEDY))
    before = engine.graphs.num_replays
    engine.step()
    assert engine.graphs.num_replays == before + 2  # the newcomer, and the next step of both
    engine.step()
    assert engine.graphs.num_replays == before + 3
    assert {name: len(ids) for name, ids in engine.tokens.items()} == {"a": 4, "b": 2}


def test_an_end_that_nobody_foresaw_costs_no_further_replay() -> None:
    engine = GraphEngine()
    requests = [make_request(str(index), 3 + index, GREEDY, like=index) for index in range(3)]
    for request in requests:
        engine.engine.add_request(request)
    for _ in range(3):
        engine.step()
    engine.engine.abort_request("1")
    before = engine.graphs.num_replays
    for _ in range(4):
        engine.step()
    assert engine.graphs.num_replays == before + 4
    for request_id in "02":
        assert engine.tokens[request_id] == oracle(requests[int(request_id)], 24)[:7]


def test_the_last_token_by_length_is_not_followed_by_a_step() -> None:
    engine = GraphEngine()
    params = SamplingParams(temperature=0, seed=0, ignore_eos=True, max_tokens=5)
    engine.engine.add_request(make_request("a", 3, params))
    engine.run()
    assert engine.graphs.num_replays == 5


def test_no_step_runs_ahead_where_blocks_lack() -> None:
    engine = GraphEngine(num_blocks=2, block_size=4, max_model_len=8)
    engine.engine.add_request(make_request("a", 3, GREEDY))
    engine.engine.add_request(make_request("b", 3, GREEDY))
    engine.step()
    assert engine.graphs.num_replays == 2  # position 3 fits
    engine.step()
    assert engine.graphs.num_replays == 2  # position 4 does not
    engine.run()
    assert engine.engine.stats().num_preemptions > 0


@pytest.mark.parametrize("kind", [{"logit_bias": {3: 1.0}}, {"min_tokens": 3}])
def test_a_request_that_is_not_simple_goes_the_plain_way_with_all_others(
    kind: dict[str, object],
) -> None:
    engine = GraphEngine()
    engine.engine.add_request(make_request("a", 3, GREEDY))
    engine.step()
    params = SamplingParams(temperature=0, seed=0, max_tokens=3, ignore_eos=True, **kind)
    edited = make_request("b", 3, params, like=1)
    engine.engine.add_request(edited)
    before = engine.graphs.num_replays
    for _ in range(3):
        engine.step()
    assert engine.graphs.num_replays == before
    assert engine.runner.num_steps == 3
    assert engine.tokens["b"] == oracle(edited, 24)
    engine.step()
    assert engine.graphs.num_replays == before + 2


def test_logits_that_are_not_finite_end_the_request_alone() -> None:
    engine = GraphEngine(stream=LazyStream())
    prompt = (5, NAN_TOKEN, NAN_TOKEN)
    bad = GenerateRequest(request_id="bad", prompt_token_ids=prompt, params=GREEDY)
    good = make_request("good", 4, GREEDY)
    engine.engine.add_request(good)
    engine.engine.add_request(bad)
    engine.run()
    assert engine.tokens["bad"] == [-1]
    assert engine.tokens["good"] == oracle(good, 24)


def test_an_error_of_the_device_is_the_engines() -> None:
    engine = GraphEngine()
    engine.engine.add_request(make_request("a", 3, GREEDY))

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine.graphs._ring.publish = fail
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.step()


def run_step(engine: GraphEngine, request: RequestState, num_new_tokens: int) -> None:
    """What the scheduler does to a request that decodes, or begins."""
    (result,) = engine.executor.execute(Step((ScheduledRequest(request, num_new_tokens),)))
    request.num_computed_tokens += num_new_tokens
    request.token_ids += result.token_ids


@pytest.mark.parametrize("is_looked_at", [True, False])
@pytest.mark.parametrize("num_computed", [0, 4], ids=["begins anew", "goes on"])
def test_a_row_is_not_used_once_its_request_has_other_blocks(
    num_computed: int, is_looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preempted, it may find its full blocks again. The control takes what is under way."""
    if not is_looked_at:
        monkeypatch.setattr(
            RunAhead, "_is_under_way", lambda _self, item, ahead: item.request in ahead.rows
        )
    engine = GraphEngine()
    request = make_request("a", 4, GREEDY)
    state = RequestState.of(request, 0)
    state.block_ids = [0, 1, 2]
    run_step(engine, state, 4)
    state.num_computed_tokens, state.block_ids = num_computed, [0 if num_computed else 3, 4, 5]
    run_step(engine, state, 5 - num_computed)
    for _ in range(3):
        run_step(engine, state, 1)
    assert (state.token_ids[4:] == oracle(request, 24)[:5]) == is_looked_at


def test_closing_waits_for_what_is_under_way() -> None:
    """Other ranks compute their parts of it with this one, and cannot if it is gone."""
    stream = LazyStream()
    engine = GraphEngine(stream=stream)
    engine.engine.add_request(make_request("a", 3, GREEDY))
    for _ in range(3):
        engine.step()
    assert stream._queue
    engine.executor.close()
    assert not stream._queue


def test_captured_steps_are_gone_once_the_executor_is_closed() -> None:
    """NCCL ends a group only then, and waits for it; the group is what the runner holds."""

    class Stream(InlineStream):
        def capture(self, work: Work) -> Work:  # noqa: ARG002 - as CUDA's, holds nothing of it
            return lambda: None

    engine = GraphEngine(stream=Stream())
    graphs = weakref.ref(engine.graphs)
    del engine.graphs
    engine.executor.close()
    assert graphs() is None
