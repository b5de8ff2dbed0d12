"""Rows choose the right experts, in every kernel, and their results are added in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.layers.kernels import Kernels, ReferenceKernels
from qwen3_ray.layers.moe import ExpertRows, Routing
from qwen3_ray.layers.numba_kernels import NumbaKernels

KERNELS: dict[str, Kernels] = {"reference": ReferenceKernels(), "numba": NumbaKernels(2)}
NUM_ROWS, NUM_EXPERTS, TOP_K = 97, 16, 5
ALL = Routing(TOP_K, True, 0, NUM_EXPERTS)

both_kernels = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS.keys())
routings = st.builds(
    lambda top_k, normalise, span: Routing(top_k, normalise, min(span), max(span) - min(span)),
    st.integers(1, NUM_EXPERTS),
    st.booleans(),
    st.tuples(st.integers(0, NUM_EXPERTS), st.integers(0, NUM_EXPERTS)),
)


def dense_weights(chosen: ExpertRows, num_rows: int) -> torch.Tensor:
    """[num_rows, num_local_experts]: each row's weights, 0 where it did not choose the expert."""
    dense = torch.zeros(num_rows, len(chosen.starts) - 1)
    for expert, (start, stop) in enumerate(pairwise(chosen.starts)):
        rows = chosen.rows[start:stop].long()
        assert rows.tolist() == sorted(set(rows.tolist()))
        dense[rows, expert] = chosen.weights[start:stop]
    return dense


@settings(deadline=None)
@given(
    routing=routings,
    num_rows=st.integers(1, 40),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 1_000),
)
def test_numba_routes_as_the_oracle(
    routing: Routing, num_rows: int, scale: float, seed: int
) -> None:
    logits = scale * torch.randn(
        num_rows, NUM_EXPERTS, generator=torch.Generator().manual_seed(seed)
    )
    expected = KERNELS["reference"].route(logits, routing)
    chosen = KERNELS["numba"].route(logits, routing)
    torch.testing.assert_close(
        dense_weights(chosen, num_rows), dense_weights(expected, num_rows), rtol=1e-5, atol=1e-7
    )
    assert chosen.rows.dtype == expected.rows.dtype == torch.int32
    if scale < 60:  # beyond that probabilities vanish, and which of them is larger is no matter
        assert chosen.starts == expected.starts
        assert torch.equal(chosen.rows, expected.rows)


@both_kernels
@pytest.mark.parametrize("normalise", [False, True])
def test_weights_are_those_of_a_softmax_over_all_experts(normalise: bool, kernels: Kernels) -> None:
    logits = torch.randn(NUM_ROWS, NUM_EXPERTS)
    weights = dense_weights(kernels.route(logits, ALL._replace(normalise=normalise)), NUM_ROWS)
    chosen = weights > 0
    assert (chosen.sum(dim=-1) == TOP_K).all()
    assert torch.equal(chosen, logits >= logits.topk(TOP_K).values[:, -1:])
    expected = logits.double().softmax(dim=-1) * chosen
    if normalise:
        expected /= expected.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(weights, expected.float())


@both_kernels
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_ranks_share_out_what_one_has(size: int, kernels: Kernels) -> None:
    logits = torch.randn(NUM_ROWS, NUM_EXPERTS)
    count = NUM_EXPERTS // size
    shares = [
        dense_weights(kernels.route(logits, Routing(TOP_K, True, rank * count, count)), NUM_ROWS)
        for rank in range(size)
    ]
    assert torch.equal(
        torch.cat(shares, dim=1), dense_weights(kernels.route(logits, ALL), NUM_ROWS)
    )


@both_kernels
def test_ties_go_to_the_lowest_experts(kernels: Kernels) -> None:
    logits = torch.tensor([[0.0] * 16, [1.0, 2.0, 2.0, 2.0] + [0.0] * 12, [5.0] + [1.0] * 15])
    weights = dense_weights(kernels.route(logits, ALL._replace(top_k=3)), 3)
    chosen = [row.nonzero().flatten().tolist() for row in weights]
    assert chosen == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]


def test_a_row_has_the_same_bits_alone_and_on_any_thread() -> None:
    logits = torch.randn(3_000, NUM_EXPERTS)
    whole = dense_weights(NumbaKernels(1).route(logits, ALL), 3_000)
    assert torch.equal(dense_weights(NumbaKernels(3).route(logits, ALL), 3_000), whole)
    for start, stop in ((0, 1), (5, 6), (2_999, 3_000), (3, 10)):
        part = NumbaKernels(1).route(logits[start:stop], ALL)
        assert torch.equal(dense_weights(part, stop - start), whole[start:stop])


@both_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("expert", [0, 3, 15])
def test_a_broken_row_is_nan_and_breaks_no_other(
    expert: int, value: float, kernels: Kernels
) -> None:
    logits = torch.randn(4, NUM_EXPERTS)
    expected = dense_weights(kernels.route(logits, ALL), 4)
    logits[1, expert] = value
    weights = dense_weights(kernels.route(logits, ALL), 4)
    assert torch.equal(weights[[0, 2, 3]], expected[[0, 2, 3]])
    assert weights[1].isnan().sum() == TOP_K


@both_kernels
def test_weighted_rows_are_added_to_their_own(kernels: Kernels) -> None:
    out, x, weights = torch.randn(9, 100), torch.randn(6, 100), torch.randn(4)
    rows = torch.tensor([7, 0, 3, 8], dtype=torch.int32)
    expected = out.clone()
    for index, row in enumerate(rows):
        expected[row] += weights[index] * x[index]
    kernels.add_weighted(out, x, rows, weights)
    torch.testing.assert_close(out, expected)


def test_added_rows_have_the_same_bits_alone_and_on_any_thread() -> None:
    x, weights, rows = torch.randn(3_000, 100), torch.randn(3_000), torch.randperm(3_000).int()
    whole = torch.zeros(3_000, 100)
    NumbaKernels(3).add_weighted(whole, x, rows, weights)
    for index in (0, 17, 2_999):
        alone = torch.zeros(3_000, 100)
        one = slice(index, index + 1)
        NumbaKernels(1).add_weighted(alone, x[one], rows[one], weights[one])
        assert torch.equal(alone[rows[index]], whole[rows[index]])
