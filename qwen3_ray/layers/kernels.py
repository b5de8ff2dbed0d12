"""Who computes what lies between the linears: one Protocol; plain torch, Numba and Triton."""

from __future__ import annotations

import logging
from typing import Literal, Protocol

import torch

from qwen3_ray.attention.base import AttentionBackend, AttentionMetadata, KVCache
from qwen3_ray.attention.reference import ReferenceAttention
from qwen3_ray.config import Quantization
from qwen3_ray.errors import ConfigError
from qwen3_ray.layers import activation, moe, norm, rotary
from qwen3_ray.layers.layer_stack import DenseStack, LayerStack
from qwen3_ray.layers.linear import Packer
from qwen3_ray.layers.moe import ExpertRows, ExpertShape, ExpertStack, Routing
from qwen3_ray.layers.rotary import QKNorm

KernelChoice = Literal["auto", "reference", "numba", "triton"]

logger = logging.getLogger(__name__)


class Kernels(Protocol):
    """Fused small steps and attention; operations and shapes as in the modules named."""

    name: str
    row_invariant: bool
    """Whether a row's bits depend on that row alone, in everything here."""
    float32_only: bool
    """Whether activations must be float32."""
    can_capture: bool
    """Whether CUDA graphs can hold all of them: none waits for the device."""
    attention: AttentionBackend

    def packer(self, *, halves: bool, dtype: torch.dtype, device: torch.device) -> Packer | None:
        """How these kernels want weights; None: as they are.

        Args:
            halves: whether the CPU's may be rounded to float16, where that loses next to nothing.
            dtype: of activations.
            device: where the model lives.
        """

    def quantizer(self, quantization: Quantization, device: torch.device) -> Packer | None:
        """How these kernels quantise weights; None if they cannot, or not on that device."""

    def fuse(self, stack: DenseStack) -> LayerStack | None:
        """All layers in one, if these kernels can; with the bits of calling them one by one."""

    def stack_experts(self, shape: ExpertShape) -> ExpertStack | None:
        """Room for a layer's experts of this rank, if these kernels compute them all at once."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See `norm.add_rms_norm`."""

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
        """The queries of `rotary.qk_norm_rope`; its keys and values go into `cache`.

        See `AttentionBackend.write_kv` for the last two arguments.
        """

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
    float32_only = False
    can_capture = False

    def __init__(self) -> None:
        self.attention: AttentionBackend = ReferenceAttention()
        self.add_rms_norm = norm.add_rms_norm
        self.qk_norm_rope = rotary.qk_norm_rope
        self.silu_and_mul = activation.silu_and_mul
        self.route = moe.route
        self.add_weighted = moe.add_weighted

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
        q, k, v = self.qk_norm_rope(qkv, positions, norm, cos_sin, num_kv_heads)
        self.attention.write_kv(k, v, cache, metadata)
        return q

    def packer(self, *, halves: bool, dtype: torch.dtype, device: torch.device) -> None:
        """See `Kernels`."""

    def quantizer(self, quantization: Quantization, device: torch.device) -> None:
        """See `Kernels`."""

    def fuse(self, stack: DenseStack) -> None:
        """See `Kernels`."""

    def stack_experts(self, shape: ExpertShape) -> None:
        """See `Kernels`."""


def select_kernels(choice: KernelChoice, device: torch.device, *, exact: bool = True) -> Kernels:
    """`auto` is numba on CPU, with as many threads as torch, and triton on CUDA.

    Without Triton, `auto` is reference there. Numba and Triton are imported only if chosen.

    Args:
        choice: triton works on the CPU, too, if it is told to interpret.
        device: where the model lives.
        exact: of triton's kernels those whose rows' bits depend on no other row; those of the
            CPU are always such, and plain torch never is.

    Raises:
        ConfigError: `auto` is to be exact on CUDA, without Triton.
    """
    if choice == "auto":
        choice = "numba" if device.type == "cpu" else _best_on_gpu(exact=exact)
    if choice == "triton":
        from qwen3_ray.layers.triton_kernels import TritonKernels  # noqa: PLC0415 - optional

        return TritonKernels(exact=exact)
    if choice == "numba":
        from qwen3_ray.layers.numba_kernels import NumbaKernels  # noqa: PLC0415 - slow to import

        return NumbaKernels(torch.get_num_threads())
    return ReferenceKernels()


def _best_on_gpu(*, exact: bool) -> KernelChoice:
    problem = obstacle_to_triton()
    if not problem:
        return "triton"
    if exact:
        raise ConfigError(
            "numerics",
            "exact",
            f"on CUDA needs Triton, which cannot be loaded ({problem}): install triton, or set "
            "--numerics fast, which plain torch can serve, slowly",
        )
    logger.warning("plain torch computes, slower and not exact: no Triton (%s)", problem)
    return "reference"


def obstacle_to_triton() -> str:
    """Why kernels in Triton cannot be loaded; empty if they can."""
    try:
        import qwen3_ray.layers.triton_kernels  # noqa: F401, PLC0415 - optional
    except ImportError as error:
        return str(error)
    return ""
