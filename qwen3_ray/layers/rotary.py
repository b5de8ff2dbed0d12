"""Per-head RMSNorm of queries and keys and their rotation (RoPE), in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qwen3_ray.layers.norm import rms_norm
from qwen3_ray.layers.yarn import YarnScaling


class QKNorm(NamedTuple):
    """Weights of the two per-head norms, each [head_dim], and their epsilon."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float


def build_cos_sin(
    *,
    head_dim: int,
    theta: float,
    num_positions: int,
    device: torch.device,
    yarn: YarnScaling | None = None,
) -> torch.Tensor:
    """float32 [num_positions, head_dim]: cosines of the head_dim / 2 angles, then their sines.

    Everything in fp32, as in transformers: the angles of late positions are already rounded.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    periods = theta**exponents
    frequencies = 1.0 / periods
    if yarn is not None:
        low, high = yarn.blend_range(head_dim=head_dim, theta=theta)
        ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
        kept = 1 - ramp.clamp(0, 1)
        frequencies = 1.0 / (yarn.factor * periods) * (1 - kept) + frequencies * kept
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return (table if yarn is None else table * yarn.attention_factor).to(device)


def qk_norm_rope(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    norm: QKNorm,
    cos_sin: torch.Tensor,
    num_kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split `qkv` and normalise and rotate queries and keys.

    Args:
        qkv: [num_rows, (num_heads + 2 * num_kv_heads) * head_dim].
        positions: [num_rows] int32.
        norm: norms of queries and keys.
        cos_sin: table of `build_cos_sin`.
        num_kv_heads: key/value heads in `qkv`.

    Returns:
        q [num_rows, num_heads, head_dim], k and v [num_rows, num_kv_heads, head_dim], contiguous.
    """
    heads = qkv.view(qkv.shape[0], -1, norm.q_weight.shape[0])
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q = heads[:, :num_heads]
    k = heads[:, num_heads : num_heads + num_kv_heads]
    v = heads[:, num_heads + num_kv_heads :]
    cos, sin = cos_sin[positions.long()].to(qkv.dtype)[:, None].chunk(2, dim=-1)
    q = _rotate(rms_norm(q, norm.q_weight, norm.eps), cos, sin)
    k = _rotate(rms_norm(k, norm.k_weight, norm.eps), cos, sin)
    return q, k, v.contiguous()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + head_dim / 2): halves, not neighbours."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
