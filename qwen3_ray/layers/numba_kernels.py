"""The CPU's kernels behind the `Kernels` protocol."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from qwen3_ray.attention.base import AttentionBackend, AttentionMetadata, KVCache
from qwen3_ray.attention.numba_paged import NumbaPagedAttention
from qwen3_ray.config import Quantization
from qwen3_ray.cpu.features import check_features
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.numba_lanes import SharedSum
from qwen3_ray.distributed.shared_collectives import SharedCollectives
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers import numba_rows
from qwen3_ray.layers.fused import FusedLayers, packed_matrices
from qwen3_ray.layers.layer_stack import DenseStack
from qwen3_ray.layers.linear import Packer
from qwen3_ray.layers.moe import ExpertRows, ExpertShape, Routing
from qwen3_ray.layers.packed import PackedMatrix
from qwen3_ray.layers.quantized import QuantizedMatrix
from qwen3_ray.layers.rotary import QKNorm

_SOFTMAX_OPERATIONS = 8  # of each expert, roughly


class NumbaKernels:
    """Row-invariant float32 kernels on `num_threads` threads."""

    name = "numba"
    row_invariant = True
    float32_only = True
    can_capture = False

    def __init__(self, num_threads: int) -> None:
        """Raises ResourcesError if products cannot be compiled for this CPU."""
        check_features()
        self._pool = ThreadPool(num_threads)
        self.attention: AttentionBackend = NumbaPagedAttention(self._pool)

    def packer(
        self,
        *,
        halves: bool,
        dtype: torch.dtype,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> Packer:
        """See `Kernels`; activations are float32, on the CPU."""
        return partial(PackedMatrix, pool=self._pool, halves=halves)

    def quantizer(
        self,
        quantization: Quantization,
        device: torch.device,  # noqa: ARG002
    ) -> Packer | None:
        """See `Kernels`."""
        return partial(QuantizedMatrix, pool=self._pool) if quantization == "int8" else None

    def fuse(self, stack: DenseStack) -> FusedLayers | None:
        """See `Kernels`."""
        shared, matrices = _shared_sum(stack.tp), packed_matrices(stack.layers)
        if shared is None or matrices is None:
            return None
        return FusedLayers(stack, matrices, shared=shared, pool=self._pool)

    def stack_experts(self, shape: ExpertShape) -> None:
        """See `Kernels`."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See `norm.add_rms_norm`."""
        out = torch.empty_like(x)
        self._pool.run(
            numba_rows.add_rms_norm,
            x.numel(),
            x.numpy(),
            residual.numpy(),
            weight.numpy(),
            np.float32(eps),
            out.numpy(),
        )
        return out

    def qk_norm_rope_write(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        norm: QKNorm,
        cos_sin: torch.Tensor,
        num_kv_heads: int,
        *,
        cache: KVCache,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """See `Kernels`."""
        num_rows, head_dim = qkv.shape[0], norm.q_weight.shape[0]
        num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
        q = torch.empty(num_rows, num_heads, head_dim)
        k, v = torch.empty(2, num_rows, num_kv_heads, head_dim)
        self._pool.run(
            numba_rows.qk_norm_rope,
            2 * qkv.numel(),
            qkv.numpy(),
            positions.numpy(),
            norm.q_weight.numpy(),
            norm.k_weight.numpy(),
            np.float32(norm.eps),
            cos_sin.numpy(),
            q.numpy(),
            k.numpy(),
            v.numpy(),
        )
        self.attention.write_kv(k, v, cache, metadata)
        return q

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `activation.silu_and_mul`."""
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
        self._pool.run(numba_rows.silu_and_mul, 4 * out.numel(), gate_up.numpy(), out.numpy())
        return out

    def route(self, logits: torch.Tensor, routing: Routing) -> ExpertRows:
        """See `moe.route`."""
        num_rows, num_experts = logits.shape
        experts = np.empty((num_rows, routing.top_k), np.int32)
        weights = np.empty((num_rows, routing.top_k), np.float32)
        self._pool.run(
            numba_rows.choose_experts,
            (routing.top_k + _SOFTMAX_OPERATIONS) * num_rows * num_experts,
            logits.numpy(),
            routing.normalise,
            experts,
            weights,
        )
        starts = np.empty(routing.num_local_experts + 1, np.int32)
        rows, row_weights = np.empty(experts.size, np.int32), np.empty(experts.size, np.float32)
        numba_rows.group_rows(experts, weights, routing.first_expert, starts, rows, row_weights)
        ends: list[int] = starts.tolist()
        return ExpertRows(
            ends, torch.from_numpy(rows[: ends[-1]]), torch.from_numpy(row_weights[: ends[-1]])
        )

    def add_weighted(
        self, out: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """See `moe.add_weighted`."""
        self._pool.run(
            numba_rows.add_weighted,
            2 * len(rows) * out.shape[1],
            out.numpy(),
            x.numpy(),
            rows.numpy(),
            weights.numpy(),
        )


def _shared_sum(tp: TPGroup) -> SharedSum | None:
    """How kernels sum over the ranks by themselves; None if those speak through sockets."""
    if tp.collectives is None:
        return SharedSum(0, 1, 1, 0, 0)
    if isinstance(tp.collectives, SharedCollectives):
        return tp.collectives.shared_sum
    return None
