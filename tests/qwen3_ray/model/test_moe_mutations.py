"""Each way in which experts could be wrong makes the comparison with the oracle fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers import moe
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.layers.moe import ExpertRows, Routing
from qwen3_ray.model.qwen3 import DecoderLayer, Qwen3ForCausalLM
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import run_ranks
from tests.qwen3_ray.model.conftest import SHAPES
from tests.qwen3_ray.model.helpers import (
    FP32_BOUND,
    VISIBLE,
    Checkpoint,
    ForgetfulGroup,
    OracleLogits,
    load,
    random_ids,
    relative_error,
)

NORMALISED = "experts and a dense layer"
UNNORMALISED = "experts, weights not normalised"
NUM_TOKENS = 50
Change = Callable[[SparseMLP], SparseMLP]


def with_route(route: Callable[[torch.Tensor, Routing], ExpertRows]) -> Change:
    kernels = ReferenceKernels()
    kernels.route = route
    return lambda mlp: replace(mlp, kernels=kernels)


def with_experts(change: Callable[[list[Expert]], list[Expert]]) -> Change:
    return lambda mlp: replace(mlp, experts=change(list(mlp.experts)))


def with_routing(**changes: int) -> Change:
    return lambda mlp: replace(mlp, routing=mlp.routing._replace(**changes))


def softmax_after_top_k(logits: torch.Tensor, routing: Routing) -> ExpertRows:
    """The weights of a softmax over the chosen logits alone."""
    return moe.route(logits, routing._replace(normalise=True))


def equal_weights(logits: torch.Tensor, routing: Routing) -> ExpertRows:
    chosen = moe.route(logits, routing)
    return chosen._replace(weights=torch.full_like(chosen.weights, 1 / routing.top_k))


def weights_of_neighbours(logits: torch.Tensor, routing: Routing) -> ExpertRows:
    chosen = moe.route(logits, routing)
    return chosen._replace(weights=chosen.weights.roll(1))


def rows_of_neighbours(logits: torch.Tensor, routing: Routing) -> ExpertRows:
    chosen = moe.route(logits, routing)
    return chosen._replace(rows=(chosen.rows + 1) % len(logits))


def last_row_lost(logits: torch.Tensor, routing: Routing) -> ExpertRows:
    """One entry, of the last expert that has any."""
    chosen = moe.route(logits, routing)
    starts = [min(start, len(chosen.rows) - 1) for start in chosen.starts]
    return ExpertRows(starts, chosen.rows[:-1], chosen.weights[:-1])


def gate_and_up_swapped(experts: list[Expert]) -> list[Expert]:
    class Swapped:
        name = "swapped"

        def __init__(self, expert: Expert) -> None:
            self.inner = expert.gate_up_proj
            self.out_features, self.in_features = self.inner.out_features, self.inner.in_features

        def matmul(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.inner.matmul(x).chunk(2, dim=-1)
            return torch.cat((up, gate), dim=-1)

    return [expert._replace(gate_up_proj=Swapped(expert)) for expert in experts]


MUTATIONS: dict[str, tuple[str, Change]] = {
    "softmax after top-k": (UNNORMALISED, with_route(softmax_after_top_k)),
    "normalisation missing": (NORMALISED, with_routing(normalise=False)),
    "one expert fewer": (UNNORMALISED, with_routing(top_k=4)),
    "one expert more": (NORMALISED, with_routing(top_k=3)),
    "all experts with equal weights": (NORMALISED, with_route(equal_weights)),
    "weights of other rows": (NORMALISED, with_route(weights_of_neighbours)),
    "rows shifted by one": (NORMALISED, with_route(rows_of_neighbours)),
    "one row lost": (NORMALISED, with_route(last_row_lost)),
    "two experts swapped": (
        NORMALISED,
        with_experts(lambda experts: [experts[1], experts[0], *experts[2:]]),
    ),
    "gate and up swapped": (NORMALISED, with_experts(gate_and_up_swapped)),
}


def mutated(
    model: Qwen3ForCausalLM, change: Change, *, layer: int | None = None
) -> Qwen3ForCausalLM:
    """`change` in all sparse layers, or in one."""

    def change_layer(index: int, part: DecoderLayer) -> DecoderLayer:
        if isinstance(part.mlp, SparseMLP) and layer in {None, index}:
            return replace(part, mlp=change(part.mlp))
        return part

    mutant = copy.copy(model)
    mutant._layers = tuple(change_layer(*item) for item in enumerate(model._layers))
    return mutant


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_oracle_notices(
    mutation: str, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    shape, change = MUTATIONS[mutation]
    model_dir = checkpoint(shape, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    model = load(model_dir, dtype="float32", kernels="reference")
    expected = oracle_logits(model_dir, ids)
    assert relative_error(forward_logits(model, ids), expected) <= FP32_BOUND
    assert relative_error(forward_logits(mutated(model, change), ids), expected) > VISIBLE


def test_the_oracle_notices_the_gate_of_another_layer(
    checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(NORMALISED, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    model = load(model_dir, dtype="float32", kernels="reference")
    last = model._layers[-1].mlp
    assert isinstance(last, SparseMLP)
    mutant = mutated(model, lambda mlp: replace(mlp, gate=last.gate), layer=0)
    assert relative_error(forward_logits(mutant, ids), oracle_logits(model_dir, ids)) > VISIBLE


def test_the_oracle_notices_ranks_that_take_each_others_experts(
    checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(NORMALISED, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)

    both_take_the_first = with_routing(first_expert=0)

    def run(tp: TPGroup) -> torch.Tensor:
        return forward_logits(
            mutated(load(model_dir, tp, dtype="float32"), both_take_the_first), ids
        )

    expected = oracle_logits(model_dir, ids)
    assert relative_error(run_ranks(1, run)[0], expected) <= FP32_BOUND
    assert relative_error(run_ranks(2, run)[0], expected) > VISIBLE


@pytest.mark.parametrize("dropped", [2, 4, 6], ids=["experts 0", "down 1", "experts 2"])
def test_the_oracle_notices_a_dropped_all_reduce(
    dropped: int, checkpoint: Checkpoint, oracle_logits: OracleLogits
) -> None:
    model_dir = checkpoint(NORMALISED, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    period = 2 * SHAPES[NORMALISED].num_layers + 1

    def run(forgotten: int) -> torch.Tensor:
        def body(tp: TPGroup) -> torch.Tensor:
            mutant = ForgetfulGroup.of(tp, period=period, dropped=forgotten)
            return forward_logits(load(model_dir, mutant, dtype="float32"), ids)

        return run_ranks(2, body)[0]

    expected = oracle_logits(model_dir, ids)
    assert relative_error(run(-1), expected) <= FP32_BOUND
    assert relative_error(run(dropped), expected) > VISIBLE
