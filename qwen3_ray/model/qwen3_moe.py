"""The mixture of experts that Qwen3's sparse layers have in place of a dense MLP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import Kernels
from qwen3_ray.layers.linear import Matrix
from qwen3_ray.layers.moe import ExpertStack, Routing


class Expert(NamedTuple):
    """SwiGLU of one expert, whole on one rank."""

    gate_up_proj: Matrix
    down_proj: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMLP:
    """Routed experts of one layer; this rank holds a contiguous share of them, whole.

    Each rank routes all rows and computes those that chose its experts; the results of a row's
    experts are added in ascending order of experts, first on each rank, then over the ranks.
    """

    gate: Matrix
    """[num_experts, hidden_size]; the same on every rank."""
    experts: Sequence[Expert]
    """This rank's."""
    routing: Routing
    kernels: Kernels
    tp: TPGroup

    def forward(self, x: torch.Tensor, /) -> torch.Tensor:
        """See `FeedForward`."""
        chosen = self.kernels.route(self.gate.matmul(x), self.routing)
        out = torch.zeros_like(x)
        for expert, (start, stop) in zip(self.experts, pairwise(chosen.starts), strict=True):
            if start == stop:
                continue
            rows = chosen.rows[start:stop]
            gate_up = expert.gate_up_proj.matmul(x.index_select(0, rows))
            down = expert.down_proj.matmul(self.kernels.silu_and_mul(gate_up))
            self.kernels.add_weighted(out, down, rows, chosen.weights[start:stop])
        return self.tp.all_reduce(out)

    def matrices(self) -> Iterator[Matrix]:
        """See `FeedForward`."""
        yield self.gate
        for expert in self.experts:
            yield from expert


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedMLP:
    """As `SparseMLP`, with kernels that compute all of the rank's experts at once."""

    gate: Matrix
    """[num_experts, hidden_size]; the same on every rank."""
    experts: ExpertStack
    tp: TPGroup

    def forward(self, x: torch.Tensor, /) -> torch.Tensor:
        """See `FeedForward`."""
        return self.tp.all_reduce(self.experts.forward(x, self.gate.matmul(x)))

    def matrices(self) -> Iterator[Matrix]:
        """See `FeedForward`."""
        yield self.gate
