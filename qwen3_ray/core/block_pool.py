"""Which KV blocks are free."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_ray.errors import EngineError


class BlockPool:
    """Block ids 0 to `num_blocks - 1`, each either free or handed out once.

    Last in, first out: the block freed last is handed out first, while it may still be in a CPU
    cache. All operations cost O(blocks named). Knows nothing of requests.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._in_use = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still hand out."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks.

        Raises:
            EngineError: fewer are free; nothing is handed out. Callers look at `num_free` first.
        """
        if not 0 <= count <= len(self._free):
            raise EngineError(f"{count} KV blocks were asked for, {len(self._free)} are free")
        block_ids = [self._free.pop() for _ in range(count)]
        for block_id in block_ids:
            self._in_use[block_id] = 1
        return block_ids

    def free(self, block_ids: Sequence[int]) -> None:
        """Take blocks back.

        Raises:
            EngineError: a block is not handed out (freed twice, or no block of this pool).
        """
        for block_id in block_ids:
            if not (0 <= block_id < self.num_blocks and self._in_use[block_id]):
                raise EngineError(f"KV block {block_id} was freed, but it is not in use")
            self._in_use[block_id] = 0
            self._free.append(block_id)

    def check_integrity(self, held: Sequence[int]) -> None:
        """Check that `held`, every block its owners believe to have, is all that is in use.

        Raises:
            EngineError: a block is lost, or has two owners.
        """
        if sorted(self._free + list(held)) != list(range(self.num_blocks)):
            raise EngineError(
                f"KV blocks lost or shared: {self.num_blocks} in all, "
                f"{len(self._free)} free, {len(held)} held by requests"
            )
