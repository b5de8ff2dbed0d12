"""A row's logits keep their bits whatever other rows choose which experts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.layers.linear import DenseMatrix, Matrix
from qwen3_ray.layers.moe import Routing
from qwen3_ray.layers.row_plan import RowPlan, StepRows
from qwen3_ray.model.qwen3 import FeedForward, Qwen3ForCausalLM
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import run_ranks
from tests.qwen3_ray.model.helpers import Checkpoint, batched_logits, load, random_ids

SHAPE = "wide experts"
NUM_TOKENS = 70
MAX_ROWS = 2048
SIXES = RowPlan(granule=6, exact=True)


@pytest.fixture(scope="module", params=["auto", "float32"])
def exact_model(
    request: pytest.FixtureRequest, checkpoint: Checkpoint
) -> tuple[Qwen3ForCausalLM, RowPlan, list[int]]:
    """Packed and fp32 linears, with the row plan of this machine."""
    model_dir = checkpoint(SHAPE, "bfloat16")
    model = load(model_dir, dtype=request.param)
    plan = model.find_row_plan("exact", MAX_ROWS)
    assert plan.exact
    return model, plan, random_ids(model_dir, NUM_TOKENS)


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_chunks_have_the_bits_of_the_whole(
    chunk: int, exact_model: tuple[Qwen3ForCausalLM, RowPlan, list[int]]
) -> None:
    model, plan, ids = exact_model
    whole = forward_logits(model, ids, plan=plan)
    assert torch.equal(forward_logits(model, ids, [chunk], plan=plan), whole)


@pytest.mark.parametrize("batch", [2, 5, 17])
def test_a_batch_has_the_bits_of_each_alone(
    batch: int, exact_model: tuple[Qwen3ForCausalLM, RowPlan, list[int]]
) -> None:
    model, plan, ids = exact_model
    alone = forward_logits(model, ids, plan=plan)
    others = [ids[i : i + 3 * i + 2] for i in range(batch - 1)]
    for chunk in (1, 13):
        together = batched_logits(model, [*others, ids], plan, chunk)
        assert torch.equal(together[-1], alone)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_keep_the_bits(size: int, checkpoint: Checkpoint) -> None:
    model_dir = checkpoint(SHAPE, "bfloat16")
    ids = random_ids(model_dir, 40)

    def run(tp: TPGroup) -> list[torch.Tensor]:
        model = load(model_dir, tp)
        plan = model.find_row_plan("auto", MAX_ROWS)
        assert plan.exact
        return [forward_logits(model, ids, chunks, plan=plan) for chunks in (None, [13, 1], [7])]

    whole, *chunked = run_ranks(size, run)[0]
    assert len(whole) == len(ids)
    assert all(torch.equal(logits, whole) for logits in chunked)


@dataclass(frozen=True)
class Unpadded:
    """Experts that see their rows as they come."""

    inner: FeedForward

    def forward(self, x: torch.Tensor, rows: StepRows, /) -> torch.Tensor:
        return self.inner.forward(x, StepRows(rows.num_tokens, RowPlan()))

    def matrices(self) -> Iterator[Matrix]:
        return self.inner.matrices()


def test_without_padding_of_the_experts_rows_bits_differ(
    exact_model: tuple[Qwen3ForCausalLM, RowPlan, list[int]],
) -> None:
    """The control: all but the experts is padded, by the same plan."""
    model, plan, ids = exact_model
    control = copy.copy(model)
    control._layers = tuple(replace(layer, mlp=Unpadded(layer.mlp)) for layer in model._layers)
    whole = forward_logits(control, ids, plan=plan)
    assert any(
        not torch.equal(forward_logits(control, ids, [chunk], plan=plan), whole)
        for chunk in (1, 7, 13)
    )


def test_the_plan_is_found_for_the_gate_and_the_experts_too(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("experts and a dense layer", "bfloat16"))
    shapes = {(matrix.out_features, matrix.in_features) for matrix in model.matrices()}
    assert {(8, 96), (2 * 48, 96), (96, 48), (2 * 128, 96), (96, 128)} <= shapes
    assert len(list(model.matrices())) == 3 * 2 + 2 * (1 + 2 * 8) + 2 + 1


@dataclass
class Recorded:
    """A product that notes how many rows it was given."""

    inner: DenseMatrix
    name: str = "recorded"
    num_rows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out_features, self.in_features = self.inner.out_features, self.inner.in_features

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        self.num_rows.append(len(x))
        return self.inner.matmul(x)


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(1, 6), (5, 6), (20, 24)])
def test_padding_chooses_no_experts_and_experts_are_padded(num_tokens: int, num_rows: int) -> None:
    """All rows are alike, so that all choose the same two of four experts."""
    experts = [
        Expert(Recorded(DenseMatrix(torch.randn(8, 6))), DenseMatrix(torch.randn(6, 4)))
        for _ in range(4)
    ]
    mlp = SparseMLP(
        gate=DenseMatrix(torch.randn(4, 6)),
        experts=experts,
        routing=Routing(2, True, 0, 4),
        kernels=ReferenceKernels(),
        tp=TPGroup.single(),
    )
    out = mlp.forward(torch.randn(6).expand(num_rows, 6), StepRows(num_tokens, SIXES))
    assert not out[num_tokens:].any()
    assert out[:num_tokens].any(dim=1).all()
    seen = [expert.gate_up_proj.num_rows for expert in experts]
    assert sorted(seen) == [[], [], [num_rows], [num_rows]]
