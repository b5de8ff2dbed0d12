"""Choosing experts for rows and adding up what they say, in plain torch.

The oracle of all kernels. The experts' products lie between the two steps: each expert sees the
rows that chose it, in order, and its result is added before the next one's.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch


class Routing(NamedTuple):
    """How rows choose experts, and which experts are this rank's: a contiguous share of all."""

    top_k: int
    """Experts that a row chooses, on all ranks together."""
    normalise: bool
    """Divide a row's `top_k` weights by their sum."""
    first_expert: int
    num_local_experts: int


class ExpertShape(NamedTuple):
    """A layer's experts on one rank, but for their weights."""

    routing: Routing
    hidden_size: int
    intermediate_size: int
    """Of one expert."""
    dtype: torch.dtype
    """Of weights and activations."""
    device: torch.device


class ExpertRows(NamedTuple):
    """The rows that chose each of a rank's experts: expert by expert, ascending within each."""

    starts: list[int]
    """[num_local_experts + 1]: local expert `i` has the entries `starts[i] : starts[i + 1]`."""
    rows: torch.Tensor
    """[starts[-1]] int32, indices of rows."""
    weights: torch.Tensor
    """[starts[-1]] float32, the expert's share in its row's result."""


class ExpertStack(Protocol):
    """A rank's experts of one layer, in the form of kernels that compute all of them at once."""

    def load(self, index: int, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
        """Copy the weights of local expert `index`, from any device and dtype.

        Gate and up projection are [intermediate_size, hidden_size], down is the other way round.

        Raises:
            ValueError: an element is NaN or infinite.
        """

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Rows [num_rows, hidden_size] -> the weighted sums of what their experts here say.

        Rows choose by the gate's `logits`, [num_rows, number of all experts]; for those that chose
        none of this rank's experts all is 0. Nothing waits for the device.
        """


def route(logits: torch.Tensor, routing: Routing) -> ExpertRows:
    """Let each row choose its experts by the gate's `logits`, [num_rows, number of all experts].

    Softmax over all experts in fp32, then the `top_k` largest; of equals those of lowest index.
    """
    probabilities = logits.float().softmax(dim=-1)
    ordered = probabilities.sort(dim=-1, descending=True, stable=True)
    weights, experts = ordered.values[:, : routing.top_k], ordered.indices[:, : routing.top_k]
    if routing.normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    local = (experts - routing.first_expert).flatten()
    rows = torch.arange(len(logits), device=logits.device).repeat_interleave(routing.top_k)
    kept = ((local >= 0) & (local < routing.num_local_experts)).nonzero().flatten()
    order = kept[local[kept].sort(stable=True).indices]
    counts = torch.bincount(local[kept], minlength=routing.num_local_experts)
    starts = [0, *counts.cumsum(0).tolist()]
    return ExpertRows(starts, rows[order].int(), weights.flatten()[order])


def add_weighted(
    out: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor
) -> None:
    """`out[rows[i]] += weights[i] * x[i]` for each of the distinct `rows`; `x` may be longer."""
    scaled = x[: len(rows)] * weights[:, None]
    out.index_add_(0, rows, scaled.to(out.dtype))
