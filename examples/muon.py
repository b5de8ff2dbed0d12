"""The optimiser of the demo model's matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised by Newton-Schulz iterations, in float32.

    Matrices of one shape are handled as a single batch. (torch.optim.Muon works in bfloat16,
    which is slow on processors without bfloat16 arithmetic.)
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay})
        self.iterations = 5

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), params in by_shape.items():
                steps = torch.stack([self._with_momentum(p, group["momentum"]) for p in params])
                if rows > cols:
                    steps = self._orthogonal(steps.transpose(1, 2)).transpose(1, 2)
                else:
                    steps = self._orthogonal(steps)
                scale = group["lr"] * math.sqrt(max(1.0, rows / cols))
                for p, step in zip(params, steps, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=scale)

    def _with_momentum(self, p: nn.Parameter, momentum: float) -> torch.Tensor:
        buf = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buf.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buf, momentum)

    def _orthogonal(self, x: torch.Tensor) -> torch.Tensor:
        """[count, rows, cols] with rows <= cols -> the same, singular values near one."""
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(self.iterations):
            gram = x @ x.transpose(1, 2)
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
        return x
