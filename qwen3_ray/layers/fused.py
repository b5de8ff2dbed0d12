"""All dense layers of a model behind one call of `numba_layers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.attention.numba_attention import score_scale
from qwen3_ray.cpu import huge_pages
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.numba_lanes import SharedSum
from qwen3_ray.errors import EngineError
from qwen3_ray.layers import numba_layers
from qwen3_ray.layers.layer_stack import DenseLayer, DenseStack
from qwen3_ray.layers.numba_layers import LayerShape, Scratch, StepRows
from qwen3_ray.layers.packed import PackedMatrix
from qwen3_ray.layers.quantized import QuantizedMatrix


class PackedMatrices(NamedTuple):
    """A layer's products, in their order; quantised are all of a model's or none."""

    qkv: PackedMatrix | QuantizedMatrix
    o: PackedMatrix | QuantizedMatrix
    gate_up: PackedMatrix | QuantizedMatrix
    down: PackedMatrix | QuantizedMatrix


class FusedLayers:
    """A `LayerStack` of one shape, with the bits of its kernels called one by one."""

    def __init__(
        self,
        stack: DenseStack,
        matrices: Sequence[PackedMatrices],
        *,
        shared: SharedSum,
        pool: ThreadPool,
    ) -> None:
        """`matrices` are those of the layers."""
        self._layers = tuple(stack.layers)  # the table holds no references
        self._matrices = tuple(matrices)
        self._num_kv_heads = stack.num_kv_heads
        self._cos_sin = stack.cos_sin.numpy()
        self._shared = shared
        self._pool = pool
        pairs = zip(self._layers, self._matrices, strict=True)
        self._table = np.array([_columns(*pair) for pair in pairs], np.int64)
        self._operations_per_row = sum(
            2 * matrix.panels.size for matrices in self._matrices for matrix in matrices
        )

    def forward(
        self,
        delta: torch.Tensor,
        positions: torch.Tensor,
        kv_caches: Sequence[KVCache],
        metadata: AttentionMetadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LayerStack`."""
        num_rows, hidden_size = delta.shape
        shape = self._shape(hidden_size, kv_caches[0])
        table = self._table.copy()
        table[:, numba_layers.KEY_CACHE] = [cache.key.data_ptr() for cache in kv_caches]
        table[:, numba_layers.VALUE_CACHE] = [cache.value.data_ptr() for cache in kv_caches]
        sync = np.zeros(
            numba_layers.FIRST_COUNTER + len(table) * numba_layers.COUNTERS_PER_LAYER, np.int64
        )
        scratch = self._scratch(num_rows, shape)
        wide_delta = np.empty((num_rows, self._matrices[0].o.width), np.float32)
        wide_delta[:, :hidden_size] = delta.numpy()
        rows = StepRows(
            positions.numpy(),
            metadata.slot_mapping.numpy(),
            metadata.query_start_loc.numpy(),
            metadata.seq_lens.numpy(),
            metadata.block_tables.numpy(),
        )
        self._pool.run(
            numba_layers.run_layers,
            num_rows * self._operations_per_row,
            sync,
            table,
            shape,
            rows,
            self._cos_sin,
            scratch,
            wide_delta,
            self._shared,
            True if isinstance(self._matrices[0].qkv, QuantizedMatrix) else None,
        )
        if sync[numba_layers.FAILED]:
            raise EngineError("another rank of the group is gone")
        result = torch.from_numpy(wide_delta)[:, :hidden_size]
        return result.contiguous(), torch.from_numpy(scratch.residual)

    def _shape(self, hidden_size: int, cache: KVCache) -> LayerShape:
        norm, matrices = self._layers[0].qk_norm, self._matrices[0]
        head_dim = norm.q_weight.shape[0]
        return LayerShape(
            hidden_size=hidden_size,
            num_heads=matrices.o.in_features // head_dim,
            num_kv_heads=self._num_kv_heads,
            head_dim=head_dim,
            intermediate_size=matrices.down.in_features,
            block_size=cache.value.shape[3],
            kv_element_bytes=cache.key.element_size(),
            eps=np.float32(norm.eps),
            score_scale=score_scale(head_dim),
        )

    def _scratch(self, num_rows: int, shape: LayerShape) -> Scratch:
        matrices = self._matrices[0]
        longest = max(matrix.panels.shape[1] for matrix in matrices)
        q_shape = (num_rows, shape.num_heads, shape.head_dim)
        kv_shape = (num_rows, shape.num_kv_heads, shape.head_dim)
        shapes = (
            (num_rows * longest,), (num_rows, matrices.qkv.width), q_shape, kv_shape, kv_shape,
            q_shape, (num_rows, matrices.gate_up.width),
        )  # fmt: skip
        sizes = [math.prod(each) for each in shapes]
        parts = torch.split(huge_pages.empty(sum(sizes)), sizes)
        tiles, qkv, q, k, v, attended, gate_up = (
            part.numpy().reshape(each) for part, each in zip(parts, shapes, strict=True)
        )
        return Scratch(
            residual=np.zeros((num_rows, shape.hidden_size), np.float32),
            tiles=tiles,
            qkv=qkv,
            q=q,
            k=k,
            v=v,
            attended=attended,
            flat_attended=attended.reshape(num_rows, -1),
            gate_up=gate_up,
        )


def packed_matrices(layers: Sequence[DenseLayer]) -> list[PackedMatrices] | None:
    """Their products, if all of them are packed and none or all are quantised."""
    products = [packed for layer in layers if (packed := _packed(layer)) is not None]
    kinds = {type(matrix) for matrices in products for matrix in matrices}
    return products if len(products) == len(layers) and len(kinds) == 1 else None


def _packed(layer: DenseLayer) -> PackedMatrices | None:
    matrices = (layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj)
    packed = [m for m in matrices if isinstance(m, PackedMatrix | QuantizedMatrix)]
    return PackedMatrices(*packed) if len(packed) == len(matrices) else None


def _columns(layer: DenseLayer, matrices: PackedMatrices) -> list[int]:
    """One row of the table of `numba_layers`; the caches' addresses come with each step."""
    vectors = (layer.input_norm, layer.qk_norm.q_weight, layer.qk_norm.k_weight, layer.post_norm)
    columns = [vector.data_ptr() for vector in vectors] + [0, 0]
    for matrix in matrices:
        columns += [matrix.panels.ctypes.data, matrix.panels.shape[0]]
        if isinstance(matrix, QuantizedMatrix):
            columns += [0, matrix.scales.ctypes.data]
        else:
            columns += [int(matrix.is_half), 0]
    return columns
