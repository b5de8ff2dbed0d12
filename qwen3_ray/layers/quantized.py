"""Weights of eight bits for the CPU, with a scale for each output: half the bytes of float16."""

from __future__ import annotations

import numpy as np
import torch

from qwen3_ray.cpu.numba_tiles import LANES
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers import packed
from qwen3_ray.layers.numba_quantize import quantize


class QuantizedMatrix:
    """A weight [out_features, in_features]; each row of a product has the same bits in any batch.

    Activations and sums are float32: a sum over the bytes, which are integers, is multiplied by
    its output's scale at the end.
    """

    name = "int8-panels"
    row_invariant = True

    def __init__(self, *weights: torch.Tensor, pool: ThreadPool) -> None:
        """Quantise the rows of `weights`, one below the other; see `PackedMatrix`.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        self.out_features = sum(weight.shape[0] for weight in weights)
        self.in_features = weights[0].shape[1]
        self._pool = pool
        self.panels = packed.new_panels(self.out_features, self.in_features, np.int8)
        """int8 [num_panels, k, 8], see `numba_linear`."""
        self.scales = np.zeros((self.panels.shape[0], LANES), np.float32)
        """[num_panels, 8], of each output; 0 beyond `out_features`."""
        first = 0
        for weight in packed.whole_panels(weights):
            last = first + weight.shape[0] // LANES
            rows, stride = packed.flat_rows(weight)
            pool.run(
                quantize,
                weight.numel(),
                rows,
                self.in_features,
                stride,
                self.panels[first:last],
                self.scales[first:last],
            )
            first = last
        if not np.isfinite(self.scales).all():
            raise ValueError("the weight holds NaN or infinity")

    @property
    def width(self) -> int:
        """Columns of a product as the kernels write it: `out_features` and the panels' rest."""
        return self.panels.shape[0] * LANES

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [num_rows, in_features] -> contiguous [num_rows, out_features]."""
        out = packed.multiply(x, self.panels, self._pool, scales=self.scales)
        return out[:, : self.out_features].contiguous()
