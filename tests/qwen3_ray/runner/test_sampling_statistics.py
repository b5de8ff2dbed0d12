"""Frequencies against probabilities: chi-square tests with fixed seeds, so no luck."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context, edited, keep
from tests.qwen3_ray.runner.sampling_rig import KERNELS, make_request, make_sampler, repeat, sample

COUNT = 8000
SIZE = 10
QUANTILES = {
    1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 8: 26.12, 9: 27.88,
    99: 148.2,
}  # fmt: skip
"""Of the chi-square distribution at 0.999, by degrees of freedom."""


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("way", KERNELS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.5, "top_k": 6},
        {"top_p": 0.8},
        {"top_k": 8, "top_p": 0.8},
        {"min_p": 0.2},
        {"min_p": 0.2, "temperature": 2},
        {"repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.3},
        {"logit_bias": {1: 2.0, 3: -1.0}, "temperature": 0.8},
        {"allowed_token_ids": [1, 4, 5, 8]},
    ],
    ids=lambda fields: "+".join(fields) or "plain",
)
def test_frequencies_are_the_probabilities(way: str, fields: dict[str, float]) -> None:
    params = SamplingParams(seed=11, **fields)
    logits = np.random.default_rng(3).normal(size=SIZE).astype(np.float32)
    output = [2, 2, 5]
    context = Context(params, output=output)
    probabilities = keep(edited([float(x) for x in logits], context), params).probabilities
    results = sample(
        make_sampler(way, SIZE), np.tile(logits, (COUNT, 1)), repeat(params, COUNT, output=output)
    )
    counts = np.bincount([result.token_ids[0] for result in results], minlength=SIZE)
    ids = list(probabilities)
    assert counts.sum() == counts[ids].sum() == COUNT
    expected = np.array(list(probabilities.values())) * COUNT
    assert chi_square(counts[ids], expected) < QUANTILES[len(ids) - 1]


def test_choices_of_one_request_are_independent() -> None:
    """All pairs of tokens that two choices draw at one position come equally often."""
    params = SamplingParams(seed=5)
    logits = np.zeros((COUNT, SIZE), np.float32)
    sampler = make_sampler("kernel", SIZE)
    drawn = [
        [result.token_ids[0] for result in sample(sampler, logits, repeat(params, COUNT, choice=i))]
        for i in range(3)
    ]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        pairs = np.array(drawn[first]) * SIZE + drawn[second]
        counts = np.bincount(pairs, minlength=SIZE * SIZE)
        assert chi_square(counts, np.full(SIZE**2, COUNT / SIZE**2)) < QUANTILES[99]


def test_neighbouring_positions_are_independent() -> None:
    sampler = make_sampler("kernel", SIZE)
    tokens = [0] * 2000
    requests = [
        make_request(Context(SamplingParams(seed=1), prompt=tokens[: 1 + i])) for i in range(2000)
    ]
    results = sample(sampler, np.zeros((2000, SIZE), np.float32), requests)
    drawn = np.array([result.token_ids[0] for result in results])
    counts = np.bincount(drawn[:-1] * SIZE + drawn[1:], minlength=SIZE**2)
    assert chi_square(counts, np.full(SIZE**2, 1999 / SIZE**2)) < QUANTILES[99]
