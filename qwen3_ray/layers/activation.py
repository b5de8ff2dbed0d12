"""SwiGLU's gate in plain torch: the oracle of the kernels, and what runs without any."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[num_rows, 2 * size], gate before up -> silu(gate) * up, [num_rows, size]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
