"""FBGEMM's fp16-packed products: the only file that names its operators.

Weights are 16 bit, activations and sums fp32. The operators may leave torch one day, and are not
there on every machine: `is_available` says so.
"""

from __future__ import annotations

import torch

MAX_FP16 = 65_504.0
MAX_ROUNDING = 1e-5
"""Largest norm of what rounding to fp16 changes, relative to the norm of the tensor."""
_CHUNK_ELEMENTS = 1 << 22


class PackedMatrix:
    """A weight [out_features, in_features] packed in fp16."""

    name = "fp16-packed"

    def __init__(self, weight: torch.Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [num_rows, in_features] -> [num_rows, out_features]."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)


def is_available() -> bool:
    """Whether this torch and this CPU run the packed products."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def can_pack(weight: torch.Tensor) -> bool:
    """Whether fp16 holds `weight` (finite, 2-D) as well as the sums need it."""
    total = changed = 0.0
    step = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for row in range(0, weight.shape[0], step):
        wide = weight[row : row + step].float()
        if float(wide.abs().max()) > MAX_FP16:
            return False
        total += float(wide.square().sum())
        changed += float((wide - wide.half().float()).square().sum())
    return changed <= MAX_ROUNDING**2 * total
