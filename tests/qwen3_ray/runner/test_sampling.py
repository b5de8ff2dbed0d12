"""The Numba kernel against the definition, and both against arithmetic done by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.runner import numba_sampling, philox, reference_sampling
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR, ROW, Rows
from qwen3_ray.sampling_params import SamplingParams

CPU = torch.device("cpu")


def rows_of(
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    first_position: int = 0,
) -> Rows:
    rows = np.zeros(count, ROW)
    rows["temperature"] = temperature
    rows["top_k"] = top_k
    rows["top_p"] = top_p
    rows["seed"] = seed
    rows["position"] = np.arange(first_position, first_position + count)
    return rows


def shares_of(rows: Rows) -> list[float]:
    return [philox.uniform(int(row["seed"]), int(row["position"])) for row in rows]


def by_definition(logits: NDArray[np.float32], rows: Rows) -> list[int]:
    columns = [torch.from_numpy(rows[name].copy()) for name in ("temperature", "top_k", "top_p")]
    share = torch.tensor(shares_of(rows), dtype=torch.float64)
    ids: list[int] = reference_sampling.sample_rows(
        torch.from_numpy(logits), *columns, share=share
    ).tolist()
    return ids


def by_kernel(logits: NDArray[np.float32], rows: Rows) -> list[int]:
    ids = np.empty(len(rows), np.int64)
    for part in range(2):
        numba_sampling.sample_rows(part, 2, logits, logits.shape[1], rows, ids)
    result: list[int] = ids.tolist()
    return result


Sample = Callable[[NDArray[np.float32], Rows], list[int]]
SAMPLERS = pytest.mark.parametrize("sample", [by_definition, by_kernel])


def repeat(logits: list[float], count: int) -> NDArray[np.float32]:
    return np.tile(np.array(logits, np.float32), (count, 1))


@SAMPLERS
@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0, 3.0, 3.0, 1.0], 1), ([-5.0, -5.0], 0), ([-0.0, 0.0], 0), ([0.0, -0.0, -1.0], 0)],
)
def test_greedy_takes_the_largest_logit_and_the_lowest_id_of_equals(
    sample: Sample, logits: list[float], expected: int
) -> None:
    assert sample(repeat(logits, 1), rows_of(1, temperature=0.0)) == [expected]


@SAMPLERS
@pytest.mark.parametrize(
    ("logits", "top_k", "top_p", "kept"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2, 1.0, {2, 3}),
        ([1.0, 1.0, 1.0, 1.0], 3, 1.0, {0, 1, 2}),
        ([2.0, 5.0, 2.0, 2.0], 2, 1.0, {0, 1}),
        ([-1.0, -2.0, -3.0], 1, 1.0, {0}),
        ([1.0, 2.0], 5, 1.0, {0, 1}),
        ([1.0, 2.0], -1, 1.0, {0, 1}),
        ([0.0] * 10, 0, 0.3, {0, 1, 2}),
        ([0.0] * 10, 0, 0.31, {0, 1, 2, 3}),
        ([9.0, 0.0, 0.0], 0, 0.5, {0}),
        ([0.0, 0.0, 0.0, 0.0], 2, 0.5, {0}),  # top_p shares out what top_k left
        ([0.0, 0.0, -0.0], 2, 1.0, {0, 1}),
        ([-0.0, 0.0, 0.0], 2, 1.0, {0, 1}),
        ([1.0, 2.0, 3.0], 0, 1e-9, {2}),
    ],
)
def test_exactly_the_right_tokens_are_kept(
    sample: Sample, logits: list[float], top_k: int, top_p: float, kept: set[int]
) -> None:
    rows = rows_of(200, temperature=2.0, top_k=top_k, top_p=top_p)
    assert set(sample(repeat(logits, 200), rows)) == kept


@SAMPLERS
def test_a_row_that_is_not_finite_fails_alone(sample: Sample) -> None:
    logits = np.zeros((4, 5), np.float32)
    logits[1, 4] = np.nan
    logits[2, 0] = -np.inf
    rows = rows_of(4)
    alone = sample(logits[[0, 3]], rows[[0, 3]])
    assert sample(logits, rows) == [alone[0], NUMERICAL_ERROR, NUMERICAL_ERROR, alone[1]]


@SAMPLERS
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.5, 6, 1.0), (1.0, 8, 0.8)]
)
def test_frequencies_are_the_probabilities(
    sample: Sample, temperature: float, top_k: int, top_p: float
) -> None:
    """A chi-square test; the seed is fixed, so it passes always or never."""
    count = 8000
    logits = np.random.default_rng(3).normal(size=10).astype(np.float32)
    ordered, order = torch.from_numpy(logits)[None].sort(descending=True)
    weights = reference_sampling.kept_weights(
        ordered,
        torch.tensor([temperature], dtype=torch.float64),
        torch.tensor([top_k]),
        torch.tensor([top_p], dtype=torch.float64),
    )
    expected = torch.zeros(10, dtype=torch.float64)
    expected[order[0]] = weights[0] / weights.sum() * count
    rows = rows_of(count, temperature=temperature, top_k=top_k, top_p=top_p, seed=11)
    counts = np.bincount(sample(np.tile(logits, (count, 1)), rows), minlength=10)
    kept = expected.numpy() > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - expected.numpy()[kept]) ** 2 / expected.numpy()[kept]).sum()
    assert chi_square < 27.9  # the 0.999 quantile for 9 degrees of freedom


LOGITS = st.lists(
    st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]),
        st.floats(-30, 30, width=32),
        st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 2.0]),
    top_k=st.integers(-1, 45),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**20),
)
def test_the_kernel_does_what_the_definition_says(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int, position: int
) -> None:
    array = np.array([logits], np.float32)
    rows = rows_of(
        1, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, first_position=position
    )
    assume(not _is_a_close_call(array[0], rows[0]))
    assert by_kernel(array, rows) == by_definition(array, rows)


def _is_a_close_call(logits: NDArray[np.float32], row: np.void) -> bool:
    """Whether the order of additions may decide: a sum is within rounding of a border."""
    if row["temperature"] == 0:
        return False
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order].astype(float) - float(logits.max())) / row["temperature"])
    if row["top_k"] > 0:
        weights[row["top_k"] :] = 0
    is_exact = set(weights) <= {0.0, 1.0}
    running = np.cumsum(weights)
    if not is_exact and np.any(abs(running / running[-1] - row["top_p"]) < 1e-12):
        return row["top_p"] < 1
    if row["top_p"] < 1:
        weights[np.concatenate(([0.0], running[:-1])) >= row["top_p"] * running[-1]] = 0
    in_id_order = np.zeros(len(logits))
    in_id_order[order] = weights
    share = philox.uniform(int(row["seed"]), int(row["position"]))
    return bool(np.any(abs(np.cumsum(in_id_order) / in_id_order.sum() - share) < 1e-12))


def test_a_large_vocabulary_is_cut_right() -> None:
    logits = np.random.default_rng(0).normal(size=(12, 20_000), scale=3).astype(np.float32)
    logits[:, ::2] = np.round(logits[:, ::2])  # ties
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.7, 20, 0.95), (1.0, 5000, 0.9)):
        rows = rows_of(12, temperature=temperature, top_k=top_k, top_p=top_p, seed=-5)
        assert by_kernel(logits, rows) == by_definition(logits, rows)


def sample_ids(sampler: Sampler, logits: torch.Tensor, requests: list[RequestState]) -> list[int]:
    """One id for each request, which decodes."""
    for request in requests:
        request.num_computed_tokens = request.num_tokens - 1
    step = Step(tuple(ScheduledRequest(request, 1) for request in requests))
    return [sampled.token_ids[0] for sampled in sampler.sample(logits, step)]


def test_a_row_depends_neither_on_the_others_nor_on_threads() -> None:
    sampler = Sampler(num_valid_token_ids=6000, device=CPU)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 6000, generator=generator) * 2
    params = [SamplingParams(temperature=0.9, top_k=300, top_p=0.97, seed=i) for i in range(16)]
    requests = [RequestState(str(i), [1] * i, i, params[i]) for i in range(16)]
    together = sample_ids(sampler, logits, requests)
    alone = [sample_ids(sampler, logits[i : i + 1], requests[i : i + 1])[0] for i in range(16)]
    assert together == alone
    assert len(set(together)) > 8


@pytest.mark.parametrize("device", ["cpu", "meta"], ids=["kernel", "sorting"])
def test_ids_that_the_tokenizer_does_not_know_never_come_out(device: str) -> None:
    """Not even when their logits are the largest, or not finite."""
    sampler = Sampler(num_valid_token_ids=3, device=torch.device(device))
    logits = torch.tensor([[0.0, 1.0, 0.5, 100.0, float("nan")]]).repeat(3, 1)
    greedy = RequestState("a", [1], 1, SamplingParams(temperature=0, seed=0))
    random = RequestState("b", [1, 2], 1, SamplingParams(temperature=2, seed=5))
    assert sample_ids(sampler, logits, [greedy, random])[0] == 1
    assert sample_ids(sampler, logits, [random])[0] in (0, 1, 2)


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    sampler = Sampler(num_valid_token_ids=4096, device=CPU)
    logits = torch.zeros(1, 4096)

    def draw(token_ids: list[int], prompt_len: int, seed: int) -> int:
        params = SamplingParams(seed=seed)
        return sample_ids(sampler, logits, [RequestState("x", token_ids, prompt_len, params)])[0]

    assert draw([1, 2, 3], 1, 7) == draw([9, 8, 7], 3, 7)  # a resumed prompt, other tokens
    assert draw([1, 2, 3], 1, 7) == int(philox.uniform(7, 3) * 4096)
    assert len({draw([1, 2, 3], 1, 7), draw([1, 2], 1, 7), draw([1, 2, 3], 1, 8)}) == 3
