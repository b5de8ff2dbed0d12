"""Who computes what lies between the linears: one Protocol, plain torch and Numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from qwen3_ray.attention.base import AttentionBackend
from qwen3_ray.attention.reference import ReferenceAttention
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers import activation, moe, norm, rotary
from qwen3_ray.layers.layer_stack import DenseLayer, LayerStack
from qwen3_ray.layers.linear import Packer
from qwen3_ray.layers.moe import ExpertRows, Routing
from qwen3_ray.layers.rotary import QKNorm

KernelChoice = Literal["auto", "reference", "numba"]


class Kernels(Protocol):
    """Fused small steps and attention; operations and shapes as in the modules named."""

    name: str
    row_invariant: bool
    """Whether a row's bits depend on that row alone, in everything here."""
    attention: AttentionBackend

    def packer(self, *, halves: bool) -> Packer | None:
        """How these kernels want weights, in halves if they may; None: as they are."""

    def quantizer(self) -> Packer | None:
        """How these kernels quantise weights to eight bits; None if they cannot."""

    def fuse(
        self,
        layers: Sequence[DenseLayer],
        *,
        num_kv_heads: int,
        cos_sin: torch.Tensor,
        tp: TPGroup,
    ) -> LayerStack | None:
        """All layers in one, if these kernels can; with the bits of calling them one by one.

        Args:
            layers: of one shape, at least one.
            num_kv_heads: this rank's.
            cos_sin: see `rotary.build_cos_sin`.
            tp: whose ranks sum up what the layers give.
        """

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See `norm.add_rms_norm`."""

    def qk_norm_rope(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        norm: QKNorm,
        cos_sin: torch.Tensor,
        num_kv_heads: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `rotary.qk_norm_rope`."""

    def silu_and_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `activation.silu_and_mul`."""

    def route(self, logits: torch.Tensor, routing: Routing) -> ExpertRows:
        """See `moe.route`."""

    def add_weighted(
        self, out: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """See `moe.add_weighted`."""


class ReferenceKernels:
    """Plain torch; on any device and from any thread."""

    name = "reference"
    row_invariant = False

    def __init__(self) -> None:
        self.attention: AttentionBackend = ReferenceAttention()
        self.add_rms_norm = norm.add_rms_norm
        self.qk_norm_rope = rotary.qk_norm_rope
        self.silu_and_mul = activation.silu_and_mul
        self.route = moe.route
        self.add_weighted = moe.add_weighted

    def packer(self, *, halves: bool) -> None:
        """See `Kernels`."""

    def quantizer(self) -> None:
        """See `Kernels`."""

    def fuse(
        self,
        layers: Sequence[DenseLayer],
        *,
        num_kv_heads: int,
        cos_sin: torch.Tensor,
        tp: TPGroup,
    ) -> None:
        """See `Kernels`."""


def select_kernels(choice: KernelChoice, device: torch.device) -> Kernels:
    """`auto` is numba on CPU, with as many threads as torch, and reference on CUDA.

    Numba is imported only if it is chosen.
    """
    if choice == "reference" or (choice == "auto" and device.type != "cpu"):
        return ReferenceKernels()
    from qwen3_ray.layers.numba_kernels import NumbaKernels  # noqa: PLC0415 - slow to import

    return NumbaKernels(torch.get_num_threads())
