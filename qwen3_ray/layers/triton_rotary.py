"""Everything between the QKV product and attention in one kernel; `rotary` is its oracle."""

# ruff: noqa: PLR0917 - pointers are given to kernels by position
from __future__ import annotations

import torch
import triton
import triton.language as tl

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.layers.rotary import QKNorm

_HEADS = 8
"""Of one program: with head_dim 128, a thread of two warps reads sixteen bytes of each half."""


def qk_norm_rope_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    norm: QKNorm,
    cos_sin: torch.Tensor,
    num_kv_heads: int,
    *,
    cache: KVCache,
    metadata: AttentionMetadata,
) -> torch.Tensor:
    """See `Kernels.qk_norm_rope_write`; `cache` is plain and head_dim a power of two.

    Rows with slot -1 belong to no sequence: nothing of them is read or written, their q is zero.
    """
    num_rows, head_dim = qkv.shape[0], norm.q_weight.shape[0]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q = torch.empty(num_rows, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    qk_norm_rope_write_kernel[(num_rows, triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS))](
        qkv,
        positions,
        norm.q_weight,
        norm.k_weight,
        norm.eps,
        cos_sin,
        metadata.slot_mapping,
        q,
        cache.key,
        cache.value,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=metadata.block_size,
        heads_block=_HEADS,
        num_warps=2,
    )
    return q


@kernel
def qk_norm_rope_write_kernel(
    qkv: tl.tensor,
    positions: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: tl.tensor,
    cos_sin: tl.tensor,
    slot_mapping: tl.tensor,
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    heads_block: tl.constexpr,
) -> None:
    """Program (row, part): `heads_block` of the row's heads: queries, then keys, then values."""
    dtype = q.dtype.element_ty
    half: tl.constexpr = head_dim // 2
    all_heads: tl.constexpr = num_heads + 2 * num_kv_heads
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + row)
    is_real = slot >= 0
    head = (tl.program_id(1) * heads_block + tl.arange(0, heads_block))[:, None]
    # Of every head by itself, so that all that follows lies alike and passes no shared memory.
    column = tl.broadcast_to(tl.arange(0, half)[None, :], (heads_block, half))

    at = qkv + (row * all_heads + head) * head_dim + column
    inside = (head < all_heads) & is_real
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)

    squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / head_dim + eps)
    weight = tl.where(head < num_heads, q_weight + column, k_weight + column)
    normed_1 = _rounded(tl.load(weight) * _rounded(first * scale, dtype), dtype)
    normed_2 = _rounded(tl.load(weight + half) * _rounded(second * scale, dtype), dtype)

    angle = cos_sin + tl.load(positions + row, mask=is_real, other=0).to(tl.int64) * head_dim
    cos = _rounded(tl.load(angle + column), dtype)
    sin = _rounded(tl.load(angle + half + column), dtype)
    turned_1 = _rounded(normed_1 * cos, dtype) - _rounded(normed_2 * sin, dtype)
    turned_2 = _rounded(normed_2 * cos, dtype) + _rounded(normed_1 * sin, dtype)
    turned_1, turned_2 = _rounded(turned_1, dtype), _rounded(turned_2, dtype)

    to_q = q + (row * num_heads + head) * head_dim + column
    is_query = head < num_heads
    tl.store(to_q, turned_1, mask=is_query)
    tl.store(to_q + half, turned_2, mask=is_query)

    kv_head = head - num_heads
    is_key = inside & (kv_head >= 0) & (kv_head < num_kv_heads)
    to_key = keys + _in_cache(slot, kv_head, num_kv_heads, head_dim, block_size) + column
    tl.store(to_key, turned_1, mask=is_key)
    tl.store(to_key + half, turned_2, mask=is_key)

    kv_head -= num_kv_heads
    is_value = inside & (kv_head >= 0)
    to_value = values + _in_cache(slot, kv_head, num_kv_heads, head_dim, block_size) + column
    tl.store(to_value, first, mask=is_value)
    tl.store(to_value + half, second, mask=is_value)


@device_function
def _rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """`x` in fp32, rounded to `dtype` as plain torch does after each operation."""
    return x.to(dtype).to(tl.float32)


@device_function
def _in_cache(
    slot: tl.tensor,
    kv_head: tl.tensor,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Elements before the slot's vector in a plain cache."""
    block = (slot // block_size).to(tl.int64)
    return ((block * num_kv_heads + kv_head) * block_size + slot % block_size) * head_dim
