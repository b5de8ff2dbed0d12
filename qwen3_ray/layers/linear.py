"""Linear layers of one rank: `x @ W.T` with W split along its output or its input dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from qwen3_ray.distributed.tp_group import TPGroup


class Matrix(Protocol):
    """A weight in the form in which its kernel wants it."""

    name: str
    """Of the kernel; matrices with one name and one shape compute alike."""
    out_features: int
    in_features: int
    row_invariant: bool
    """Whether a row of a product has the same bits whatever rows are computed with it."""

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_features] -> [num_rows, out_features]."""


class Packer(Protocol):
    """Makes a `Matrix` of weights on the CPU; see `MatrixFormat.build`."""

    def __call__(self, *weights: torch.Tensor) -> Matrix:
        """Raises ValueError if an element is not finite."""


class DenseMatrix:
    """A weight [out_features, in_features] as it is, for torch's own product."""

    row_invariant = False

    def __init__(self, weight: torch.Tensor) -> None:
        self.name = str(weight.dtype).removeprefix("torch.")
        self.out_features, self.in_features = weight.shape
        self._weight = weight

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """See `Matrix`."""
        return F.linear(x, self._weight)


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How weights are held and what activations are."""

    dtype: torch.dtype
    """Of activations, and of weights that are not packed."""
    device: torch.device
    pack: Packer | None = None
    """How weights are packed; None if they are not."""
    quantize: Packer | None = None
    """How weights are quantised that may be; None if none is."""

    def build(self, *weights: torch.Tensor, may_quantize: bool = True) -> Matrix:
        """Take the rows of `weights`, one below the other, and keep nothing of their memory.

        Each is [its rows, in_features], on the CPU, in the checkpoint's dtype.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        if self.quantize is not None and may_quantize:
            return self.quantize(*weights)
        if self.pack is not None:
            return self.pack(*weights)
        weight = torch.cat(weights).to(self.device, self.dtype)
        if not is_finite(weight):
            raise ValueError("the weight holds NaN or infinity")
        return DenseMatrix(weight)


def is_finite(x: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. Takes no memory to speak of."""
    return x.numel() == 0 or all(math.isfinite(float(value)) for value in x.aminmax())


@dataclass(frozen=True, slots=True)
class ColumnParallelLinear:
    """`y = x @ W.T`, W split along its output dimension: each rank has its own columns of y."""

    matrix: Matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_features] -> [num_rows, out_shard]."""
        return self.matrix.matmul(x)


@dataclass(frozen=True, slots=True)
class RowParallelLinear:
    """`y = x @ W.T`, W split along its input dimension; the partial products are summed."""

    matrix: Matrix
    tp: TPGroup

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_shard] -> [num_rows, out_features], the same on every rank."""
        return self.tp.all_reduce(self.matrix.matmul(x))
