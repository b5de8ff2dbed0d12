"""The GPU's kernels behind the `Kernels` protocol."""

from __future__ import annotations

from functools import partial

import torch

from qwen3_ray.attention.base import AttentionBackend
from qwen3_ray.attention.triton_paged import TritonPagedAttention
from qwen3_ray.config import Quantization
from qwen3_ray.layers import moe, triton_rotary, triton_rows
from qwen3_ray.layers.fp8 import Fp8Matrix, is_supported
from qwen3_ray.layers.layer_stack import DenseStack
from qwen3_ray.layers.linear import Packer
from qwen3_ray.layers.moe import ExpertShape
from qwen3_ray.layers.triton_experts import TritonExperts
from qwen3_ray.layers.triton_matrix import TritonMatrix


class TritonKernels:
    """Exact: attention and linears, too, add up in one order for any number of rows."""

    float32_only = False
    can_capture = True

    def __init__(self, *, exact: bool) -> None:
        self.name = "triton-exact" if exact else "triton-fast"
        self.row_invariant = exact
        self.attention: AttentionBackend = TritonPagedAttention(exact=exact)
        self.add_rms_norm = triton_rows.add_rms_norm
        self.qk_norm_rope_write = triton_rotary.qk_norm_rope_write
        self.silu_and_mul = triton_rows.silu_and_mul
        self.route = moe.route
        self.add_weighted = moe.add_weighted

    def packer(
        self,
        *,
        halves: bool,  # noqa: ARG002
        dtype: torch.dtype,
        device: torch.device,
    ) -> Packer | None:
        """See `Kernels`; in fast mode torch's own products are the fastest."""
        if not self.row_invariant:
            return None
        return partial(TritonMatrix.pack, dtype=dtype, device=device)

    def quantizer(self, quantization: Quantization, device: torch.device) -> Packer | None:
        """See `Kernels`."""
        if quantization != "fp8" or not is_supported(device):
            return None
        return partial(Fp8Matrix.pack, device=device)

    def fuse(self, stack: DenseStack) -> None:
        """See `Kernels`."""

    def stack_experts(self, shape: ExpertShape) -> TritonExperts:
        """See `Kernels`."""
        return TritonExperts(shape)
