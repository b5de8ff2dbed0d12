"""The kernel against the definition, and both against arithmetic done by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner import philox
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context
from tests.qwen3_ray.runner.sampling_rig import (
    ALL_KERNELS,
    KERNELS,
    Logits,
    make_request,
    make_sampler,
    repeat,
    sample,
    sample_one,
)

WAYS = pytest.mark.parametrize("way", KERNELS)
ALL_WAYS = pytest.mark.parametrize("way", ALL_KERNELS)


def ids_of(way: str, logits: Logits, requests: Sequence[RequestState]) -> list[int]:
    """One id for each row."""
    sampled = sample(make_sampler(way, logits.shape[1]), logits, requests)
    return [token_id for result in sampled for token_id in result.token_ids]


def rows_of(logits: list[float], count: int) -> Logits:
    return np.tile(np.array(logits, np.float32), (count, 1))


@ALL_WAYS
@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0, 3.0, 3.0, 1.0], 1), ([-5.0, -5.0], 0), ([-0.0, 0.0], 0), ([0.0, -0.0, -1.0], 0)],
)
def test_greedy_takes_the_largest_logit_and_the_lowest_id_of_equals(
    way: str, logits: list[float], expected: int
) -> None:
    assert ids_of(way, rows_of(logits, 1), repeat(SamplingParams(temperature=0), 1)) == [expected]


@WAYS
@pytest.mark.parametrize(
    ("logits", "params", "kept"),
    [
        ([1.0, 2.0, 3.0, 4.0], {"top_k": 2}, {2, 3}),
        ([1.0, 1.0, 1.0, 1.0], {"top_k": 3}, {0, 1, 2}),
        ([2.0, 5.0, 2.0, 2.0], {"top_k": 2}, {0, 1}),
        ([-1.0, -2.0, -3.0], {"top_k": 1}, {0}),
        ([1.0, 2.0], {"top_k": 5}, {0, 1}),
        ([1.0, 2.0], {"top_k": -1}, {0, 1}),
        ([0.0] * 10, {"top_p": 0.3}, {0, 1, 2}),
        ([0.0] * 10, {"top_p": 0.31}, {0, 1, 2, 3}),
        ([9.0, 0.0, 0.0], {"top_p": 0.5}, {0}),
        ([0.0, 0.0, 0.0, 0.0], {"top_k": 2, "top_p": 0.5}, {0}),  # of what top_k left
        ([0.0, 0.0, -0.0], {"top_k": 2}, {0, 1}),
        ([-0.0, 0.0, 0.0], {"top_k": 2}, {0, 1}),
        ([1.0, 2.0, 3.0], {"top_p": 1e-9}, {2}),
        ([3.0, 1.0, 3.0], {"min_p": 1.0}, {0, 2}),
        ([3.0, 1.0, 3.0], {"min_p": 1.0, "top_k": 1}, {0}),
        ([0.0, -1.5, -3.0], {"min_p": 0.3}, {0, 1}),  # at a temperature of 2
        ([0.0, 0.0, -20.0], {"min_p": 0.01, "top_p": 0.5}, {0}),
        ([0.0] * 2000, {"top_k": 3}, {0, 1, 2}),  # fewer than the kernel has blocks
        ([0.0] * 2000, {"top_k": 9, "top_p": 0.34}, {0, 1, 2, 3}),
        ([0.0, 1.0] * 500, {"top_k": 501, "top_p": 1e-6}, {1}),
        ([0.0, 1.0] * 4, {"allowed_token_ids": [0, 2, 4], "top_k": 2}, {0, 2}),
    ],
)
def test_exactly_the_right_tokens_are_kept(
    way: str, logits: list[float], params: dict[str, float], kept: set[int]
) -> None:
    requests = repeat(SamplingParams(temperature=2, **params), 200)
    assert set(ids_of(way, rows_of(logits, 200), requests)) == kept


@ALL_WAYS
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(way: str, bad: float, temperature: float) -> None:
    logits = np.zeros((4, 300), np.float32)
    logits[1, 299] = logits[2, 0] = bad
    requests = repeat(SamplingParams(temperature=temperature), 4)
    sampler = make_sampler(way, 300)
    first, *broken, last = sample(sampler, logits, requests)
    assert [first, last] == sample(sampler, logits[[0, 3]], [requests[0], requests[3]])
    for result in broken:
        assert result.problem is not None
        assert "numerical error" in result.problem
        assert result.token_ids == ()


@ALL_WAYS
def test_where_nothing_is_allowed_the_request_is_told(way: str) -> None:
    params = SamplingParams(allowed_token_ids=[1], stop_token_ids=[1], min_tokens=1)
    sampled = sample_one(make_sampler(way, 3), np.zeros(3, np.float32), Context(params))
    assert sampled.problem is not None
    assert "no token is allowed" in sampled.problem


def test_a_large_vocabulary_is_cut_right() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 20_000), scale=3).astype(np.float32)
    logits[:, ::2] = np.round(logits[:, ::2])  # ties
    logits[0, 7] = 1000  # all others are far away
    for fields in (
        {},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.95},
        {"top_k": 5000, "top_p": 0.9},
        {"top_k": 70},
        {"top_p": 0.5, "min_p": 1e-6},
        {"temperature": 0.01, "top_p": 0.999},
        {"allowed_token_ids": range(0, 20_000, 3), "top_k": 40, "top_p": 0.9},
    ):
        requests = repeat(SamplingParams(seed=-5, **fields), 8)
        assert ids_of("kernel", logits, requests) == ids_of("sorting", logits, requests)


@pytest.mark.parametrize("size", [20_000, 513])
@pytest.mark.parametrize("temperature", [1e-300, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("allowed", [None, range(300, 400)], ids=["all", "none of most blocks"])
def test_float32_weights_choose_the_block_where_nothing_is_cut(
    allowed: Sequence[int] | None, temperature: float, size: int
) -> None:
    """So that ids are those of exact sums but for a random number next to a border."""
    row = np.random.default_rng(1).normal(size=size, scale=2.5).astype(np.float32)
    params = SamplingParams(seed=3, temperature=temperature, allowed_token_ids=allowed)
    ids = ids_of("kernel", np.tile(row, (200, 1)), repeat(params, 200))
    known = np.arange(size) if allowed is None else np.array(allowed)
    weights = np.zeros(size)
    weights[known] = np.exp((row[known].astype(float) - row[known].max()) / temperature)
    ends = np.cumsum(weights) / weights.sum()
    shares = np.array([philox.uniform(3 + i, 1, 0) for i in range(200)])
    assert (weights[ids] > 0).all()
    assert (ends[ids] > shares - 1e-6).all()
    assert (ends[ids] - weights[ids] / weights.sum() < shares + 1e-6).all()


def test_a_row_depends_neither_on_the_others_nor_on_threads_nor_on_padding() -> None:
    generator = np.random.default_rng(0)
    logits = (generator.normal(size=(16, 6000)) * 2).astype(np.float32)
    fields: list[dict[str, float]] = [
        {"temperature": 0},
        {"top_k": 300, "top_p": 0.97, "logprobs": 3},
        {"repetition_penalty": 1.3, "logprobs": 1},
        {"allowed_token_ids": range(50)},
    ]
    requests = [
        make_request(Context(SamplingParams(seed=i, **fields[i % 4]), prompt=range(1, 2 + i)))
        for i in range(16)
    ]
    sampler = make_sampler("kernel", 6000)
    together = sample(sampler, np.vstack((logits, logits)), requests)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        in_one_thread = sample(make_sampler("kernel", 6000), logits, requests)
    finally:
        torch.set_num_threads(num_threads)
    sampler = make_sampler("kernel", 6000)
    wider = np.pad(logits, ((0, 0), (0, 99)), constant_values=9)
    alone = [sample(sampler, wider[i : i + 1], requests[i : i + 1])[0] for i in range(16)]
    assert together == alone == in_one_thread
    assert len({result.token_ids for result in together}) > 8


@ALL_WAYS
def test_ids_that_the_tokenizer_does_not_know_never_come_out(way: str) -> None:
    """Not even when their logits are the largest, or not finite, or they are all that is wanted."""
    sampler = make_sampler(way, 3)
    logits = np.array([0.0, 1.0, 0.5, 100.0, np.nan], np.float32)
    greedy = SamplingParams(temperature=0, logit_bias={3: 100}, logprobs=5)
    assert sample_one(sampler, logits, Context(greedy)).token_ids == (1,)
    for seed in range(20):
        sampled = sample_one(sampler, logits, Context(SamplingParams(temperature=2, seed=seed)))
        assert sampled.token_ids[0] < 3
    unknown = Context(SamplingParams(allowed_token_ids=[3, 4, 1000]))
    assert sample_one(sampler, logits, unknown).problem is not None


def test_the_draw_depends_on_seed_and_position_and_choice_alone() -> None:
    sampler = make_sampler("kernel", 4096)

    def draw(prompt: list[int], output: list[int], seed: int, choice: int = 0) -> int:
        context = Context(SamplingParams(seed=seed), prompt, output, choice=choice)
        return sample_one(sampler, np.zeros(4096, np.float32), context).token_ids[0]

    assert draw([1], [2, 3], 7) == draw([9, 8, 7], [], 7)  # a resumed prompt, other tokens
    assert draw([1], [2, 3], 7) == int(philox.uniform(7, 3, 0) * 4096)
    draws = {draw([1], [2, 3], 7), draw([1], [2], 7), draw([1], [2, 3], 8), draw([1], [2, 3], 7, 1)}
    assert len(draws) == 4
