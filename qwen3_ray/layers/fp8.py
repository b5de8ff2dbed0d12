"""Weights of eight bits for CUDA: float8 with a scale for each output, activations likewise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F

from qwen3_ray.layers.triton_fp8 import MAX_FP8, SMALLEST_MAXIMUM, quantize_rows

MULTIPLE = 16
"""Of outputs and inputs: `torch._scaled_mm` takes no others."""

_CHUNK = 1 << 22
"""Elements that are held in float32 at a time while a weight is quantised."""


class Fp8Matrix:
    """A weight [out_features, in_features] in float8_e4m3fn, multiplied by float8 activations.

    The library that multiplies picks its kernels by the number of rows: a row's bits may depend on
    it. Products are rounded to bfloat16, which loses less than float8 did.
    """

    name = "fp8-scaled-mm"
    row_invariant = False

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, in_features: int) -> None:
        """See `quantize_weight` for the tensors, which hold more rows and columns than are used."""
        self.out_features, self.in_features = len(scales), in_features
        self._weight = weight
        self._scales = F.pad(scales, (0, len(weight) - len(scales)))[None]

    @classmethod
    def pack(cls, *weights: torch.Tensor, device: torch.device) -> Self:
        """Quantise the rows of `weights`, one below the other; see `MatrixFormat.build`.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        weight, scales = quantize_weight(*weights, device=device)
        if not torch.isfinite(scales).all():
            raise ValueError("the weight holds NaN or infinity")
        return cls(weight, scales, weights[0].shape[1])

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """See `Matrix`; of any float dtype."""
        rows, scales = quantize_rows(x, self._weight.shape[1])
        out = torch._scaled_mm(
            rows,
            self._weight.T,
            scale_a=scales,
            scale_b=self._scales,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out[:, : self.out_features].to(x.dtype).contiguous()


def is_supported(device: torch.device) -> bool:
    """Whether float8 products can be had there: on CUDA from compute capability 8.9 on.

    The CPU computes them too, slowly, for tests.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_weight(
    *weights: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 [num_rows, width] and float32 [out_features]: a row's numbers and its scale.

    num_rows and width are out_features and in_features rounded up to `MULTIPLE`, filled with zeros.
    A scale is NaN or infinite where its row holds such a number.
    """
    out_features, in_features = sum(len(weight) for weight in weights), weights[0].shape[1]
    shape = [-(-size // MULTIPLE) * MULTIPLE for size in (out_features, in_features)]
    quantized = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=device)
    scales = torch.empty(out_features, device=device)
    first = 0
    for rows in _chunks(weights):
        last = first + len(rows)
        values = rows.to(device).float()
        scales[first:last] = values.abs().amax(1).clamp(min=SMALLEST_MAXIMUM) / MAX_FP8
        values = (values / scales[first:last, None]).clamp(-MAX_FP8, MAX_FP8)
        quantized[first:last, :in_features] = values.to(torch.float8_e4m3fn)
        first = last
    return quantized, scales


def _chunks(weights: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
    for weight in weights:
        num_rows = max(1, _CHUNK // max(1, weight.shape[1]))
        for first in range(0, len(weight), num_rows):
            yield weight[first : first + num_rows]
