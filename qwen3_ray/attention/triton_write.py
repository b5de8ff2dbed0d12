"""Writing keys and values into a paged cache, in Triton."""

from __future__ import annotations

# ruff: noqa: PLR0917 - Triton's functions are called by position
import triton.language as tl

from qwen3_ray.gpu.triton_jit import kernel


@kernel(do_not_specialize=["slot_mapping"])
def write_kv(
    k: tl.tensor,
    v: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,
    num_kv_heads: tl.constexpr,
    padded_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    """Grid [num_rows]: a row of `k` and of `v`, [num_rows, num_kv_heads, head_dim], to its slot.

    Rows whose slot is negative are not written.
    """
    row = tl.program_id(0)
    slot = tl.load(slot_mapping + row).to(tl.int64)
    if slot < 0:
        return
    heads, dims = tl.arange(0, padded_heads)[:, None], tl.arange(0, head_dim)[None, :]
    is_head = heads < num_kv_heads
    source = (row * num_kv_heads + heads) * head_dim + dims
    block = slot // block_size * num_kv_heads + heads
    places = (block * block_size + slot % block_size) * head_dim + dims
    keys = tl.load(k + source, mask=is_head, other=0.0).to(key_cache.dtype.element_ty)
    values = tl.load(v + source, mask=is_head, other=0.0).to(value_cache.dtype.element_ty)
    tl.store(key_cache + places, keys, mask=is_head)
    tl.store(value_cache + places, values, mask=is_head)
