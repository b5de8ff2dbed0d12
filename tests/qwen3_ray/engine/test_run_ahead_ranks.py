"""Ranks of a group replay what rank 0 replays, and sample what one rank would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.control import GraphOrder, Kind, StepArrays, StepControl
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.model.weights import load_model
from qwen3_ray.runner import cuda_graphs, triton_advance
from qwen3_ray.runner.cuda_graphs import GraphLimits, GraphRunner
from qwen3_ray.runner.device_stream import use_own_stream
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.triton_shard_choice import ShardChoice
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import TINY_MODEL, engine_config, make_checkpoint
from qwen3_ray.testing_ranks import run_in_turn
from tests.qwen3_ray.runner.graphs_rig import GREEDY, GraphEngine, make_request, oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Frame = tuple[Kind, StepArrays | GraphOrder | None]


class Frames(StepControl):
    """Rank 0's frames for others of the process."""

    def __init__(self, *queues: SimpleQueue[Frame]) -> None:
        super().__init__(None, 0, 1)
        self._queues = queues

    def send(self, kind: Kind, arrays: StepArrays | None = None) -> None:
        """See `StepControl`."""
        for queue in self._queues:
            queue.put((kind, arrays))

    def send_order(self, order: GraphOrder) -> None:
        """See `StepControl`; as through memory that is used again."""
        for queue in self._queues:
            queue.put((Kind.GRAPH, order._replace(payload=order.payload.copy())))


def follow(
    queue: SimpleQueue[Frame],
    execute: Callable[[StepArrays], object],
    graphs: GraphRunner,
) -> None:
    """As `engine.rank.serve_rank` does."""
    while True:
        kind, work = queue.get()
        if kind is Kind.STOP:
            return
        if isinstance(work, StepArrays):
            execute(work)
        elif work is not None:
            graphs.follow(work)


def test_what_rank_0_tells_is_all_that_another_needs() -> None:
    """With arrivals, ends, steps of drafts and steps that are not simple, caches stay the same."""
    frames: SimpleQueue[Frame] = SimpleQueue()
    leader = GraphEngine(num_speculative_tokens=2, control=Frames(frames))
    other = GraphEngine(num_speculative_tokens=2)
    thread = threading.Thread(target=follow, args=(frames, other.runner.execute, other.graphs))
    thread.start()
    kinds = (
        GREEDY,
        replace(GREEDY, temperature=1.0, seed=3),
        replace(GREEDY, presence_penalty=0.5),
        replace(GREEDY, temperature=0.8, seed=4, top_k=1, ignore_eos=False),
    )
    requests = [
        make_request(str(i), 2 + 3 * i, replace(kinds[i % 4], max_tokens=3 + 2 * i))
        for i in range(8)
    ]
    for request in requests:
        leader.engine.add_request(request)
        leader.step()
        leader.step()
    leader.run()
    leader.executor.close()
    thread.join()
    for request in requests:
        assert leader.tokens[request.request_id] == oracle(request, 24)
    assert other.graphs.num_replays == leader.graphs.num_replays > 10
    assert other.runner.num_steps == leader.runner.num_steps > 0
    assert other.graphs.decodes.num_copies < other.graphs.num_replays
    assert other.model.tokens == leader.model.tokens
    assert other.model.histories == leader.model.histories
    for mine, others in zip(leader.graphs._ring.ids, other.graphs._ring.ids, strict=True):
        assert torch.equal(mine, others)


SMALL = replace(TINY_MODEL, num_layers=1, hidden_size=32, intermediate_size=32, num_heads=2,
                num_kv_heads=1, head_dim=16, vocab_size=67, dtype="float32")  # fmt: skip
PARAMS = (
    SamplingParams(temperature=0, seed=0),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=1.0, seed=6, top_k=3),
)


def answers(model_dir: Path, size: int) -> list[list[int]]:
    """Of three requests: two from the start, one that comes later and is cut."""
    frames: SimpleQueue[Frame] = SimpleQueue()

    def run(tp: TPGroup) -> list[list[int]]:
        config = engine_config(model_dir, device=DEVICE.type, dtype="float32", numerics="fast")
        model = load_model(config, SMALL, tp, device=DEVICE, kernels="triton")
        caches = allocate_kv_caches(
            num_layers=1, num_blocks=8, block_size=16, num_kv_heads=1, head_dim=16,
            dtype=torch.float32, device=DEVICE, panels=False,
        )  # fmt: skip
        runner = ModelRunner(model, caches, 16)
        limits = GraphLimits(
            max_num_seqs=3, max_num_batched_tokens=8, max_model_len=32, block_size=16,
            num_valid_token_ids=60,
        )  # fmt: skip
        control = Frames(frames)
        graphs = GraphRunner(
            runner.forward, ShardChoice(tp), triton_advance, limits, device=DEVICE,
            stream=use_own_stream(DEVICE), tell=control.send_order if tp.rank == 0 else None,
        )  # fmt: skip
        graphs.warm_up()
        if tp.rank > 0:
            follow(frames, runner.execute, graphs)
            return []
        executor = GroupExecutor(
            control=control,
            runner=runner,
            sampler=Sampler(num_valid_token_ids=60, device=DEVICE),
            num_blocks=8,
            block_size=16,
            graphs=graphs,
        )
        tokens = generate(executor)
        executor.close()
        return tokens

    return run_in_turn(size, run, device=DEVICE)[0]


def generate(executor: GroupExecutor) -> list[list[int]]:
    states = [
        RequestState("a", list(range(4)), 4, PARAMS[0], block_ids=[3]),
        RequestState("b", list(range(20, 23)), 3, PARAMS[1], block_ids=[2]),
        RequestState("c", list(range(40, 45)), 5, PARAMS[2], block_ids=[7]),
    ]
    for counts in [(4, 3, 0), (1, 1, 0), (1, 1, 5), (1, 1, 1), (0, 1, 1)]:
        items = [
            ScheduledRequest(state, count)
            for state, count in zip(states, counts, strict=True)
            if count
        ]
        for item, result in zip(items, executor.execute(Step(tuple(items))), strict=True):
            assert result.problem is None
            item.request.num_computed_tokens += item.num_new_tokens
            item.request.token_ids += result.token_ids
    return [state.token_ids for state in states]


def test_two_ranks_with_graphs_sample_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "PROMPT_TOKENS", (8,))
    model_dir = make_checkpoint(tmp_path / "model", SMALL)
    alone = answers(model_dir, 1)
    assert answers(model_dir, 2) == alone
    assert len({tuple(tokens[-2:]) for tokens in alone}) == 3
