"""All experts at once say what each says alone, and no row tells who shares its tiles."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers import moe, triton_experts
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.layers.linear import DenseMatrix
from qwen3_ray.layers.moe import ExpertShape, Routing
from qwen3_ray.layers.triton_experts import TritonExperts, combine
from qwen3_ray.layers.triton_moe import route
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP
from tests.qwen3_ray.runner.capture_rig import CapturingStream, NotCapturableError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HIDDEN_SIZE, SIZE, NUM_EXPERTS, TOP_K = 96, 72, 6, 3
"""Neither fills columns of tiles, nor steps of 16-bit numbers."""
ALL = Routing(TOP_K, True, 0, NUM_EXPERTS)
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest error over the largest number."""


class Weights(NamedTuple):
    """Of one expert."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nothing was written to holds NaN, or the largest integers."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the oracle's products want it then
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def random_experts(dtype: torch.dtype) -> list[Weights]:
    shapes = ((SIZE, HIDDEN_SIZE), (SIZE, HIDDEN_SIZE), (HIDDEN_SIZE, SIZE))
    return [
        Weights(
            *(
                0.2 * random(*shape, seed=10 * index + which, dtype=dtype)
                for which, shape in enumerate(shapes)
            )
        )
        for index in range(NUM_EXPERTS)
    ]


def stacked(weights: list[Weights], routing: Routing = ALL) -> TritonExperts:
    """Those of `weights` that are `routing`'s rank's."""
    stack = TritonExperts(ExpertShape(routing, HIDDEN_SIZE, SIZE, weights[0].gate.dtype, DEVICE))
    first = routing.first_expert
    for index, expert in enumerate(weights[first : first + routing.num_local_experts]):
        stack.load(index, *expert)
    return stack


class Fixed:
    """A gate whose logits are given."""

    name, row_invariant = "fixed", True
    out_features, in_features = NUM_EXPERTS, HIDDEN_SIZE

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def matmul(self, _x: torch.Tensor) -> torch.Tensor:
        return self._logits


def expected(
    x: torch.Tensor, logits: torch.Tensor, weights: list[Weights], routing: Routing = ALL
) -> torch.Tensor:
    """Of the layer in plain torch, expert by expert, in float64."""
    first = routing.first_expert
    local = weights[first : first + routing.num_local_experts]
    mlp = SparseMLP(
        gate=Fixed(logits),
        experts=[
            Expert(
                DenseMatrix(torch.cat([expert.gate, expert.up]).double()),
                DenseMatrix(expert.down.double()),
            )
            for expert in local
        ],
        routing=routing,
        kernels=ReferenceKernels(),
        tp=TPGroup.single(),
    )
    return mlp.forward(x.double())


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_rows_get_what_their_experts_say(dtype: torch.dtype, num_rows: int) -> None:
    weights = random_experts(dtype)
    x = random(num_rows, HIDDEN_SIZE, seed=1, dtype=dtype)
    logits = random(num_rows, NUM_EXPERTS, seed=2, dtype=dtype)
    found = stacked(weights).forward(x, logits)
    assert found.dtype == dtype
    assert relative_error(found, expected(x, logits, weights)) <= BOUNDS[dtype]


@pytest.mark.parametrize("num_rows", [64, 65, 130])
@pytest.mark.parametrize("tile_rows", [64, 128])
def test_an_expert_may_fill_several_tiles(tile_rows: int, num_rows: int) -> None:
    """One expert has all rows, two share the rest, and three have none."""
    weights = random_experts(torch.float32)
    x = random(num_rows, HIDDEN_SIZE, seed=1, dtype=torch.float32)
    logits = torch.zeros(num_rows, NUM_EXPERTS, device=DEVICE)
    logits[:, 4] = 2
    logits[: num_rows // 3, 1] = 1
    logits[num_rows // 3 :, 3] = 1
    routing = Routing(2, True, 0, NUM_EXPERTS)
    stack, pairs = stacked(weights, routing), route(logits, routing, tile_rows)
    between = stack.gate_up(x, pairs, tile_rows)
    found = combine(stack.down(between, pairs, tile_rows), pairs)
    assert relative_error(found, expected(x, logits, weights, routing)) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("splits", [(0, 3, 6), (0, 1, 6)])
def test_ranks_results_add_up_to_the_whole(splits: tuple[int, ...]) -> None:
    """Rank by rank; a row that chose none of a rank's experts gets nothing but 0 from it."""
    weights = random_experts(torch.float32)
    x = random(24, HIDDEN_SIZE, seed=1, dtype=torch.float32)
    logits = random(24, NUM_EXPERTS, seed=2, dtype=torch.float32)
    parts = []
    for start, stop in pairwise(splits):
        routing = Routing(TOP_K, True, start, stop - start)
        part = stacked(weights, routing).forward(x, logits)
        absent = (route(logits, routing, 64).positions < 0).all(dim=1)
        assert not part[absent].any()
        assert relative_error(part, expected(x, logits, weights, routing)) <= 2e-6
        parts.append(part)
    assert not (parts[0] == 0).all()
    assert relative_error(sum(parts), expected(x, logits, weights)) <= BOUNDS[torch.float32]


def test_a_rank_whose_experts_nobody_chose_gives_zeros() -> None:
    logits = torch.zeros(5, NUM_EXPERTS, device=DEVICE)
    logits[:, :TOP_K] = 1
    stack = stacked(random_experts(torch.float32), Routing(TOP_K, True, TOP_K, TOP_K))
    out = stack.forward(random(5, HIDDEN_SIZE, seed=1, dtype=torch.float32), logits)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("num_rows", [3, 20])
def test_the_host_learns_nothing_of_what_was_chosen(num_rows: int) -> None:
    stack = stacked(random_experts(torch.float32))
    x = random(num_rows, HIDDEN_SIZE, seed=1, dtype=torch.float32)
    logits = random(num_rows, NUM_EXPERTS, seed=2, dtype=torch.float32)
    stream = CapturingStream()
    stream.capture(lambda: stack.forward(x, logits))
    with pytest.raises(NotCapturableError):  # the control
        stream.capture(lambda: moe.route(logits, ALL))


def test_no_rows_are_no_rows() -> None:
    stack = stacked(random_experts(torch.float32))
    empty = torch.empty(0, HIDDEN_SIZE, device=DEVICE)
    assert stack.forward(empty, torch.empty(0, NUM_EXPERTS, device=DEVICE)).shape == empty.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    stack = stacked(random_experts(dtype))
    x = random(40, HIDDEN_SIZE, seed=1, dtype=dtype)
    logits = random(40, NUM_EXPERTS, seed=2, dtype=dtype)
    whole = stack.forward(x, logits)
    for start, stop in ((0, 1), (3, 20), (22, 40)):
        assert torch.equal(stack.forward(x[start:stop], logits[start:stop]), whole[start:stop])
    pairs = route(logits, ALL, 128)
    assert torch.equal(combine(stack.down(stack.gate_up(x, pairs, 128), pairs, 128), pairs), whole)


def test_with_steps_of_another_size_for_few_rows_bits_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control of the test above."""
    stack = stacked(random_experts(torch.float32))
    x = random(20, HIDDEN_SIZE, seed=1, dtype=torch.float32)
    logits = random(20, NUM_EXPERTS, seed=2, dtype=torch.float32)
    whole, shape_of = stack.forward(x, logits), triton_experts._shape

    def other_shape(tile_rows: int, dtype: torch.dtype) -> dict[str, int]:
        return {**shape_of(tile_rows, dtype), "block_k": 16}

    monkeypatch.setattr(triton_experts, "_shape", other_shape)
    assert not torch.equal(stack.forward(x[:5], logits[:5]), whole[:5])


def test_many_rows_have_the_bits_of_few() -> None:
    """From 128 rows an expert on, tiles are of 128 rows."""
    stack = stacked(random_experts(torch.float32), Routing(1, True, 0, 2))
    x = random(256, HIDDEN_SIZE, seed=1, dtype=torch.float32)
    logits = random(256, 2, seed=2, dtype=torch.float32)
    whole = stack.forward(x, logits)
    assert torch.equal(stack.forward(x[150:160], logits[150:160]), whole[150:160])


@pytest.mark.parametrize("which", ["gate", "up", "down"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_weight_that_is_no_number_is_refused(value: float, which: str) -> None:
    weights = random_experts(torch.float32)
    getattr(weights[3], which)[5, 7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        stacked(weights)
