"""The mixture of experts that Qwen3's sparse layers have in place of a dense MLP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import Kernels
from qwen3_ray.layers.linear import Matrix
from qwen3_ray.layers.moe import Routing
from qwen3_ray.layers.row_plan import StepRows


class Expert(NamedTuple):
    """SwiGLU of one expert, whole on one rank."""

    gate_up_proj: Matrix
    down_proj: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMLP:
    """Routed experts of one layer; this rank holds a contiguous share of them, whole.

    Each rank routes all rows and computes those that chose its experts; the results of a row's
    experts are added in ascending order of experts, first on each rank, then over the ranks.
    A row's bits do not depend on the others: how many share an expert with it varies, so that
    each expert's rows are padded to a row count of the plan, like those of a step.
    """

    gate: Matrix
    """[num_experts, hidden_size]; the same on every rank."""
    experts: Sequence[Expert]
    """This rank's."""
    routing: Routing
    kernels: Kernels
    tp: TPGroup

    def forward(self, x: torch.Tensor, rows: StepRows, /) -> torch.Tensor:
        """See `FeedForward`; zeros for the step's padding, which chooses no experts."""
        logits = self.gate.matmul(x)[: rows.num_tokens]
        chosen = self.kernels.route(logits, self.routing)
        out = torch.zeros_like(x)
        # What an expert's rows are padded with is of no matter: the next entries of the list.
        padded = F.pad(chosen.rows, (0, rows.plan.pad(len(chosen.rows))))
        for expert, (start, stop) in zip(self.experts, pairwise(chosen.starts), strict=True):
            if start == stop:
                continue
            batch = x.index_select(0, padded[start : start + rows.plan.pad(stop - start)])
            hidden = self.kernels.silu_and_mul(expert.gate_up_proj.matmul(batch))
            self.kernels.add_weighted(
                out,
                expert.down_proj.matmul(hidden),
                chosen.rows[start:stop],
                chosen.weights[start:stop],
            )
        return self.tp.all_reduce(out)

    def matrices(self) -> Iterator[Matrix]:
        """See `FeedForward`."""
        yield self.gate
        for expert in self.experts:
            yield from expert
