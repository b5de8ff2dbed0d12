"""Paged attention on CUDA behind the `AttentionBackend` protocol; see `triton_attention`."""

from __future__ import annotations

import math

import torch
import triton

from qwen3_ray.attention.base import AttentionMetadata, KVCache
from qwen3_ray.attention.split_plan import Launch, Planner, Tile
from qwen3_ray.attention.triton_attention import attend
from qwen3_ray.attention.triton_splits import merge
from qwen3_ray.attention.triton_write import write_kv
from qwen3_ray.errors import ConfigError

_SPLIT_LEN = 256
"""Tokens of an anchored split: part of what a row's bits follow from in exact mode."""
_LEAST_SPLIT_LEN = 128
"""In fast mode; longer contexts have longer splits."""
_BUSY_PROGRAMS = 512
"""Enough to keep a large GPU's memory busy; splits are shared out if there are fewer tiles."""
_INT32_ELEMENTS = 2**31

# Tried with ptxas for sm_90 and a head_dim of 128: no registers are spilled. A tile of 64 lanes is
# the smallest that Hopper's large products take, and the largest whose merged and partial results
# fit the registers together.
EXACT_TILE, SMALL_TILE, LARGE_TILE = Tile(64, 64, 4, 2), Tile(16, 64, 4, 5), Tile(128, 64, 8, 3)
NARROWED_TILE = Tile(64, 32, 4, 2)
"""In exact mode for a cache of float32 that queries of 16 bits read."""
FLOAT32_TILE = Tile(16, 32, 8, 3)
WIDENED_TILE = Tile(16, 16, 8, 3)
"""For queries of float32 and a narrower cache."""


class TritonPagedAttention:
    """Paged attention over plain caches of any float type; products are of the queries' type."""

    panels = False

    def __init__(
        self, *, exact: bool, split_len: int | None = None, busy_programs: int | None = None
    ) -> None:
        """Exact: a row's bits do not depend on the batch, nor on how its prompt was chunked.

        Args:
            exact: whether splits are anchored and all tiles alike.
            split_len: tokens of a split, at least so many if not exact; a multiple of 64. None for
                what was chosen for Hopper.
            busy_programs: how many the device needs; None for 512 on a GPU, 1 where it is
                interpreted. No bits depend on it in exact mode.
        """
        self.row_invariant = exact
        self._split_len = split_len or (_SPLIT_LEN if exact else _LEAST_SPLIT_LEN)
        self._busy_programs = busy_programs

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, metadata: AttentionMetadata
    ) -> None:
        """See `AttentionBackend`; `k` and `v` are contiguous. Negative slots are not written."""
        num_rows, num_kv_heads, head_dim = k.shape
        write_kv[(num_rows,)](
            k,
            v,
            cache.key,
            cache.value,
            metadata.slot_mapping,
            num_kv_heads,
            triton.next_power_of_2(num_kv_heads),
            head_dim,
            metadata.block_size,
        )

    def attend(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> torch.Tensor:
        """See `AttentionBackend`; `q` is contiguous. Rows of no sequence give 0.

        Raises:
            ConfigError: head_dim is not a power of two from 16 on.
        """
        out = torch.empty_like(q)
        num_rows, num_seqs = q.shape[0], metadata.seq_lens.shape[0]
        for launch in self._planner(q, cache, metadata).plan(num_rows, num_seqs):
            self._launch(launch, q, cache, metadata, out)
        return out

    def _planner(self, q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata) -> Planner:
        _, num_heads, head_dim = q.shape
        if head_dim < 16 or head_dim & (head_dim - 1) != 0:
            raise ConfigError("head_dim", head_dim, "must be a power of two from 16 on")
        small, large = self._tiles(q.dtype, cache.key.dtype)
        return Planner(
            exact=self.row_invariant,
            split_len=self._split_len,
            busy_programs=self._busy_programs or (_BUSY_PROGRAMS if q.is_cuda else 1),
            num_heads=num_heads,
            num_kv_heads=cache.key.shape[1],
            head_dim=head_dim,
            max_len=metadata.block_tables.shape[1] * metadata.block_size,
            small=small,
            large=large,
        )

    def _tiles(self, dtype: torch.dtype, cache_dtype: torch.dtype) -> tuple[Tile, Tile]:
        """Of sequences with few rows, and of others."""
        if dtype == torch.float32:
            tile = FLOAT32_TILE if cache_dtype == dtype else WIDENED_TILE
            return tile, tile
        if not self.row_invariant:
            return SMALL_TILE, LARGE_TILE
        tile = NARROWED_TILE if cache_dtype == torch.float32 else EXACT_TILE
        return tile, tile

    def _launch(
        self,
        launch: Launch,
        q: torch.Tensor,
        cache: KVCache,
        metadata: AttentionMetadata,
        out: torch.Tensor,
    ) -> None:
        num_rows, num_heads, head_dim = q.shape
        num_seqs, table_width = metadata.block_tables.shape
        num_kv_heads, tile = cache.key.shape[1], launch.tile
        partials = (launch.num_slots, num_heads, launch.num_partials)
        totals = torch.empty(*partials, head_dim, dtype=torch.float32, device=q.device)
        stats = torch.empty(*partials, 2, dtype=torch.float32, device=q.device)
        split_blocks = self._split_len // tile.block_n
        exact, group = self.row_invariant, num_heads // num_kv_heads
        # In exact mode nothing may be fused in one kernel that is not in another.
        options = {"num_stages": tile.num_stages, "enable_fp_fusion": not exact}
        attend[launch.num_tiles, num_kv_heads, launch.num_programs](
            q,
            cache.key,
            cache.value,
            metadata.query_start_loc,
            metadata.seq_lens,
            metadata.block_tables,
            out,
            stats,
            totals,
            num_rows,
            num_seqs,
            table_width,
            split_blocks,
            launch.num_partials,
            launch.min_rows,
            launch.max_rows,
            head_dim**-0.5 * math.log2(math.e),
            head_dim,
            group,
            metadata.block_size,
            tile.block_m,
            tile.block_n,
            exact,
            launch.tile_per_sequence,
            cache.key.numel() >= _INT32_ELEMENTS,
            num_warps=tile.num_warps,
            **options,
        )
        if launch.num_programs == 1:
            return
        merge[launch.num_slots, num_kv_heads](
            metadata.query_start_loc,
            metadata.seq_lens,
            stats,
            totals,
            out,
            num_rows,
            num_seqs,
            split_blocks,
            launch.num_partials,
            launch.num_programs,
            launch.min_rows,
            launch.max_rows,
            head_dim,
            group,
            triton.next_power_of_2(group),
            tile.block_n,
            exact,
            launch.tile_per_sequence,
            num_warps=4,
            **options,
        )
