"""Which grids of tiles and splits compute a step's attention; pure arithmetic on shapes."""

from __future__ import annotations

from dataclasses import dataclass

_ANY = 2**31 - 1
_FEW_LANES = 16
"""Query heads times rows that a sequence has at most for its tile to be small."""
_MAX_PARTIAL_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Tile:
    """How a kernel is compiled: lanes, keys of a block, and what hides the latency of memory."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One grid: tiles of the sequences that have `min_rows` to `max_rows` rows."""

    tile: Tile
    num_tiles: int
    num_programs: int = 1
    """That share the splits of a tile."""
    num_partials: int = 0
    """Of each slot."""
    num_slots: int = 0
    min_rows: int = 0
    max_rows: int = _ANY
    tile_per_sequence: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Grids for a step; they follow from shapes alone, so that a CUDA graph may hold them."""

    exact: bool
    split_len: int
    busy_programs: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_len: int
    """Tokens that the block tables have room for."""
    small: Tile
    large: Tile

    def plan(self, num_rows: int, num_seqs: int) -> list[Launch]:
        """Every row of the step is in one of the grids; in exact mode its bits are the same in all.

        Sequences with few rows have small tiles: in a step that has no more than a few for each,
        as when all decode, all rows do.
        """
        few = max(1, _FEW_LANES * self.num_kv_heads // self.num_heads)
        if num_rows <= few * num_seqs:
            return [self._any(self.small, num_rows, num_seqs)]
        rest = self._any(self.large, num_rows, num_seqs, min_rows=few + 1)
        num_slots = few * num_seqs
        num_programs, num_partials = self._shares(num_seqs, num_slots)
        if num_seqs == 1 or (self.small == self.large and num_programs == 1):
            return [self._any(self.large, num_rows, num_seqs)]
        own = Launch(
            tile=self.small,
            num_tiles=num_seqs,
            num_programs=num_programs,
            num_partials=num_partials,
            num_slots=num_slots,
            max_rows=few,
            tile_per_sequence=True,
        )
        return [own, rest]

    def _any(self, tile: Tile, num_rows: int, num_seqs: int, min_rows: int = 0) -> Launch:
        """Tiles for any number of rows of each sequence, and for those that belong to none."""
        rows_per_tile = tile.block_m * self.num_kv_heads // self.num_heads
        num_tiles = num_rows // rows_per_tile + num_seqs + 1
        num_programs, num_partials = self._shares(num_tiles, num_rows)
        return Launch(
            tile=tile,
            num_tiles=num_tiles,
            num_programs=num_programs,
            num_partials=num_partials,
            num_slots=num_rows,
            min_rows=min_rows,
        )

    def _shares(self, num_tiles: int, num_slots: int) -> tuple[int, int]:
        """Programs that share a tile's splits, and partial results that each slot then has."""
        most = -(-self.max_len // self.split_len)
        num_programs = min(most, -(-self.busy_programs // (num_tiles * self.num_kv_heads)))
        num_partials = most if self.exact else num_programs
        num_bytes = 4 * num_slots * self.num_heads * num_partials * (self.head_dim + 2)
        if num_programs <= 1 or num_bytes > _MAX_PARTIAL_BYTES:
            return 1, 0
        return num_programs, num_partials
