"""Which steps are captured, what they are given, and that a real model goes through them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.control import StepControl
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.model.weights import load_model
from qwen3_ray.runner import triton_advance
from qwen3_ray.runner.cuda_graphs import GraphLimits, GraphRunner
from qwen3_ray.runner.device_stream import InlineStream, use_own_stream
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.triton_choice import choose
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import TINY_MODEL, engine_config, make_checkpoint
from tests.qwen3_ray.runner.fake_device import CPU, FakeModel, PlainKernels, fake_choose
from tests.qwen3_ray.runner.graphs_rig import GREEDY, GraphEngine, limits, make_request, oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (32, [1, 2, 4, 8, 16, 24, 32]),
    ],
)
def test_shapes_of_decodes_end_with_the_largest_step(max_num_seqs: int, sizes: list[int]) -> None:
    assert limits(max_num_seqs=max_num_seqs).decode_sizes == sizes


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(16, [128]), (128, [128]), (500, [128, 256, 512]), (8_192, [128, 256, 512, 1_024, 2_048])],
)
def test_shapes_of_prompts_hold_every_step_up_to_2048_tokens(most: int, sizes: list[int]) -> None:
    assert replace(limits(), max_num_batched_tokens=most).prompt_sizes == sizes


class RecordingStream(InlineStream):
    """Captures like CUDA: runs the work meanwhile, and replays it alone."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.replayed: list[int] = []

    def capture(self, work):  # noqa: ANN001, ANN201
        work()
        number = self.num_captured
        self.num_captured += 1

        def replay() -> None:
            self.replayed.append(number)
            work()

        return replay


def test_largest_shapes_are_captured_first_and_leave_no_trace() -> None:
    stream, shapes = RecordingStream(), list[tuple[int, bool]]()
    model = FakeModel(8, 4)

    def forward(ids, positions, metadata, indices):  # noqa: ANN001, ANN202
        if len(shapes) < stream.num_captured + 1:
            shapes.append((len(ids), indices is None))
            is_padding = (metadata.slot_mapping == -1).all()
            assert stream.replayed or is_padding, "padding is written to a block"
        return model.forward(ids, positions, metadata, indices)

    graphs = GraphRunner(
        forward, fake_choose, PlainKernels(), limits(max_num_seqs=4), device=CPU, stream=stream
    )
    graphs.warm_up()
    decodes = [(size, True) for size in (4, 4, 2, 2, 1, 1)]  # with and without cuts
    assert shapes == [(128, False), *decodes]
    assert limits(max_num_seqs=4).num_graphs == len(shapes)
    assert set(model.tokens) == {-1}, "a padded row was written"
    request = RequestState.of(make_request("a", 3, GREEDY), 0)
    request.block_ids = [5, 6]
    launch = graphs.launch([ScheduledRequest(request, 3)])
    assert launch is not None
    assert launch.token_ids()[0] == oracle(make_request("a", 3, GREEDY), 4)[0]
    assert stream.replayed == [0]


@pytest.mark.parametrize(
    ("num_seqs", "changes", "graph"),
    [(1, {}, 6), (2, {}, 4), (3, {}, 2), (4, {}, 2), (2, {"top_k": 1}, 3), (3, {"top_p": 0.5}, 1)],
)
def test_a_step_runs_in_the_smallest_graph_that_holds_it(
    num_seqs: int, changes: dict[str, float], graph: int
) -> None:
    stream, model = RecordingStream(), FakeModel(8, 4)
    graphs = GraphRunner(
        model.forward, fake_choose, PlainKernels(), limits(max_num_seqs=4), device=CPU,
        stream=stream,
    )  # fmt: skip
    graphs.warm_up()
    items = []
    for index in range(num_seqs):
        params = replace(GREEDY, temperature=1.0, **changes) if index == 0 else GREEDY
        request = RequestState.of(make_request(str(index), 1, params), 0)
        request.block_ids = [index]
        items.append(ScheduledRequest(request, 1))
    assert graphs.launch(items) is not None
    assert stream.replayed == [graph]


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": 0},
        {"prompt_logprobs": 0},
        {"presence_penalty": 0.1},
        {"min_tokens": 1},
        {"allowed_token_ids": (1, 2)},
    ],
    ids=str,
)
def test_who_wants_more_than_a_token_is_not_for_graphs(changes: dict[str, object]) -> None:
    engine = GraphEngine()
    state = RequestState.of(make_request("a", 3, replace(GREEDY, **changes)), 0)
    state.block_ids = [0, 1]
    assert engine.graphs.launch([ScheduledRequest(state, 3)]) is None


def test_drafts_and_steps_beyond_the_largest_shape_are_not_for_graphs() -> None:
    engine = GraphEngine(max_model_len=400, num_blocks=200)
    state = RequestState.of(make_request("a", 129, GREEDY), 0)
    state.block_ids = list(range(40))
    assert engine.graphs.launch([ScheduledRequest(state, 129)]) is None
    assert engine.graphs.launch([ScheduledRequest(state, 128)]) is not None
    state.draft_token_ids, state.num_computed_tokens = [3], 128
    assert engine.graphs.launch([ScheduledRequest(state, 2, 1)]) is None


def test_with_the_real_kernels_of_steps_tokens_are_the_same() -> None:
    engine = GraphEngine(kernels=triton_advance, num_blocks=12, max_model_len=12)
    requests = [make_request(str(i), 3 + 2 * i, GREEDY, like=i) for i in range(3)]
    for request in requests:
        engine.engine.add_request(request)
        engine.step()
    engine.run()
    for request in requests:
        assert engine.tokens[request.request_id] == oracle(request, 12)


SMALL = replace(TINY_MODEL, num_layers=1, hidden_size=32, intermediate_size=32, num_heads=2,
                num_kv_heads=1, head_dim=16, vocab_size=67, dtype="float32")  # fmt: skip


@pytest.fixture(scope="module")
def make_executor(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    config = engine_config(
        make_checkpoint(tmp_path_factory.mktemp("model"), SMALL),
        device=DEVICE.type, dtype="float32", numerics="fast",
    )  # fmt: skip
    model = load_model(config, SMALL, TPGroup.single(), device=DEVICE, kernels="triton")

    def make(*, with_graphs: bool) -> GroupExecutor:
        caches = allocate_kv_caches(
            num_layers=1, num_blocks=16, block_size=16, num_kv_heads=1, head_dim=16,
            dtype=torch.float32, device=DEVICE, panels=False,
        )  # fmt: skip
        runner = ModelRunner(model, caches, 16)
        graphs = None
        if with_graphs:
            graph_limits = GraphLimits(
                max_num_seqs=2, max_num_batched_tokens=16, max_model_len=48, block_size=16,
                num_valid_token_ids=60,
            )  # fmt: skip
            graphs = GraphRunner(
                runner.forward, choose, triton_advance, graph_limits, device=DEVICE,
                stream=use_own_stream(DEVICE),
            )  # fmt: skip
            graphs.warm_up()
        return GroupExecutor(
            control=StepControl(None, 0, 1),
            runner=runner,
            sampler=Sampler(num_valid_token_ids=60, device=DEVICE),
            num_blocks=16,
            block_size=16,
            graphs=graphs,
        )

    return make


def test_a_model_with_graphs_gives_the_tokens_of_plain_launches(make_executor) -> None:  # noqa: ANN001
    """Greedily, over a border of blocks; two prompts of a step, then decodes in one and two."""
    outputs = []
    for with_graphs in (True, False):
        executor = make_executor(with_graphs=with_graphs)
        params = SamplingParams(temperature=0, seed=0)
        states = [
            RequestState("a", list(range(14)), 14, params, block_ids=[3, 1]),
            RequestState("b", list(range(20, 25)), 5, params, block_ids=[2, 7]),
        ]
        for round_, counts in enumerate([(14, 5), (1, 1), (1, 1), (1, 1), (1, 0), (1, 0)]):
            items = [
                ScheduledRequest(state, count)
                for state, count in zip(states, counts, strict=True)
                if count
            ]
            for item, result in zip(items, executor.execute(Step(tuple(items))), strict=True):
                assert result.problem is None, round_
                item.request.num_computed_tokens += item.num_new_tokens
                item.request.token_ids += result.token_ids
        outputs.append([state.token_ids for state in states])
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0][0][14:])) > 2, "the model says always the same"
