"""Frames between two ranks that are threads; each has its own group over one HashStore."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist

from qwen3_ray.distributed.control import (
    FRAME_SIZE,
    HEADER_SIZE,
    VERSION,
    GraphOrder,
    Kind,
    StepArrays,
    StepControl,
)
from qwen3_ray.errors import EngineError

CPU = torch.device("cpu")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def controls(pool: ThreadPoolExecutor) -> tuple[StepControl, StepControl]:
    store = dist.HashStore()
    futures: list[Future[StepControl]] = [
        pool.submit(StepControl.rendezvous, store, rank, 2, device=CPU, timeout_s=10)
        for rank in range(2)
    ]
    return futures[0].result(), futures[1].result()


def make_arrays(num_blocks: int = 3) -> StepArrays:
    int32 = np.int32
    return StepArrays(
        input_ids=np.array([5, 6, 7], int32),
        positions=np.array([3, 0, 1], int32),
        slot_mapping=np.array([11, 4, 5], int32),
        query_start_loc=np.array([0, 1, 3], int32),
        seq_lens=np.array([4, 2], int32),
        block_tables=np.arange(2 * num_blocks, dtype=int32).reshape(2, num_blocks),
        logits_indices=np.array([0, 2], int32),
    )


NUM_OTHER_WORDS = HEADER_SIZE + sum(
    getattr(make_arrays(0), name).size for name in StepArrays.__slots__
)
"""Of a frame without block tables."""


@pytest.mark.parametrize("num_more", [-1_000, 0, 2, 100_000], ids="{:+} words".format)
def test_a_step_arrives_as_it_was_sent(
    controls: tuple[StepControl, StepControl], pool: ThreadPoolExecutor, num_more: int
) -> None:
    """Also if it is as long as one message, or longer."""
    leader, follower = controls
    sent = make_arrays((FRAME_SIZE - NUM_OTHER_WORDS + num_more) // 2)
    for kind, arrays in (
        (Kind.NOOP, None),
        (Kind.STEP, sent),
        (Kind.STEP, sent),
        (Kind.STOP, None),
    ):
        received = pool.submit(follower.receive)
        leader.send(kind, arrays)
        got_kind, got = received.result()
        assert got_kind is kind
        if arrays is None:
            assert got is None
            continue
        assert got is not None
        assert (got.num_tokens, got.num_logits) == (3, 2)
        for name in StepArrays.__slots__:
            np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))


@pytest.mark.parametrize("num_words", [0, 1, FRAME_SIZE - HEADER_SIZE, FRAME_SIZE, 100_000])
def test_an_order_arrives_as_it_was_sent(
    controls: tuple[StepControl, StepControl], pool: ThreadPoolExecutor, num_words: int
) -> None:
    leader, follower = controls
    payload = np.arange(num_words, dtype=np.int32)
    for number in range(2):
        received = pool.submit(follower.receive)
        leader.send_order(GraphOrder(7 + number, 3, payload))
        kind, order = received.result()
        assert kind is Kind.GRAPH
        assert isinstance(order, GraphOrder)
        assert order[:2] == (7 + number, 3)
        np.testing.assert_array_equal(order.payload, payload)


@pytest.mark.parametrize(
    ("word", "value", "problem"),
    [
        (0, VERSION + 1, f"version {VERSION + 1}"),
        (1, 77, "came where"),
        (2, 5, "came where"),
        (3, 9, "damaged"),
        (4, -1, "damaged"),
    ],
    ids=["version", "epoch", "step", "kind", "sizes"],
)
def test_a_frame_that_cannot_be_right_is_refused(
    controls: tuple[StepControl, StepControl],
    pool: ThreadPoolExecutor,
    word: int,
    value: int,
    problem: str,
) -> None:
    leader, follower = controls
    received = pool.submit(follower.receive)
    leader.send(Kind.NOOP)
    assert received.result() == (Kind.NOOP, None)
    header = torch.zeros(FRAME_SIZE, dtype=torch.int32)
    header[:4] = torch.tensor([VERSION, leader._epoch, 1, Kind.NOOP])
    header[word] = value
    received = pool.submit(follower.receive)
    assert leader._collectives is not None
    leader._collectives.broadcast(header)
    with pytest.raises(EngineError, match=problem):
        received.result()


def test_every_rank_learns_the_values_of_all(
    controls: tuple[StepControl, StepControl], pool: ThreadPoolExecutor
) -> None:
    other = pool.submit(controls[1].values_of_ranks, 2**40)
    assert controls[0].values_of_ranks(2**41) == (2**41, 2**40)
    assert other.result() == (2**41, 2**40)


def test_a_rank_that_nobody_speaks_to_raises(pool: ThreadPoolExecutor) -> None:
    store = dist.HashStore()
    futures = [
        pool.submit(StepControl.rendezvous, store, rank, 2, device=CPU, timeout_s=0.5)
        for rank in range(2)
    ]
    leader, follower = futures[0].result(), futures[1].result()
    with pytest.raises(EngineError, match="gone or silent"):
        follower.receive()
    assert leader.rank == 0


def test_alone_there_is_nobody_to_tell() -> None:
    control = StepControl.rendezvous(dist.HashStore(), 0, 1, device=CPU, timeout_s=1)
    control.send(Kind.STEP, make_arrays())
    assert control.values_of_ranks(3) == (3,)
    with pytest.raises(EngineError):
        control.receive()
