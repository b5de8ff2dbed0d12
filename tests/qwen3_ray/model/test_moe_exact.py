"""Experts compute the rows that choose them, and no row tells who shares its experts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.layers.linear import DenseMatrix
from qwen3_ray.layers.moe import Routing
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP
from qwen3_ray.testing_forward import forward_logits
from tests.exactness.controls import with_torch_experts
from tests.qwen3_ray.model.helpers import Checkpoint, load, random_ids


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_with_torchs_products_in_the_experts_bits_differ(
    dtype: str, checkpoint: Checkpoint
) -> None:
    """The control of `test_exact` for experts: all else is exact."""
    model_dir = checkpoint("wide experts", "bfloat16")
    control, ids = with_torch_experts(load(model_dir, dtype=dtype)), random_ids(model_dir, 70)
    whole = forward_logits(control, ids)
    assert any(not torch.equal(forward_logits(control, ids, [n]), whole) for n in (1, 7, 13))


@dataclass
class Recorded:
    """A product that notes how many rows it was given."""

    inner: DenseMatrix
    name: str = "recorded"
    row_invariant: bool = False
    num_rows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out_features, self.in_features = self.inner.out_features, self.inner.in_features

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        self.num_rows.append(len(x))
        return self.inner.matmul(x)


@pytest.mark.parametrize("num_rows", [1, 5, 20])
def test_an_expert_computes_just_the_rows_that_choose_it(num_rows: int) -> None:
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
    assert mlp.forward(torch.randn(6).expand(num_rows, 6)).any(dim=1).all()
    seen = [expert.gate_up_proj.num_rows for expert in experts]
    assert sorted(seen) == [[], [], [num_rows], [num_rows]]
