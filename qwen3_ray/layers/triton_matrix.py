"""Weights of a CUDA device whose products have the same bits for a row in any batch."""

from __future__ import annotations

from typing import Self

import torch

from qwen3_ray.layers import triton_linear
from qwen3_ray.layers.linear import is_finite

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class TritonMatrix:
    """A weight [out_features, in_features] for `triton_linear`; sums are float32."""

    row_invariant = True

    def __init__(self, weight: torch.Tensor) -> None:
        """`weight` is contiguous, of the activations' dtype and on their device."""
        self.name = f"{_NAMES[weight.dtype]}-triton-exact"
        self.out_features, self.in_features = weight.shape
        self._weight = weight

    @classmethod
    def pack(cls, *weights: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Self:
        """The rows of `weights`, one below the other; see `MatrixFormat.build`.

        Raises:
            ValueError: an element is NaN or infinite, or is so in `dtype`.
        """
        num_rows = sum(weight.shape[0] for weight in weights)
        matrix = torch.empty(num_rows, weights[0].shape[1], device=device, dtype=dtype)
        first = 0
        for weight in weights:
            matrix[first : first + len(weight)] = weight
            first += len(weight)
        if not is_finite(matrix):
            raise ValueError("the weight holds NaN or infinity")
        return cls(matrix)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """See `Matrix`; `x` is of the weight's dtype."""
        return triton_linear.multiply(x, self._weight)
