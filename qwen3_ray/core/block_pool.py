"""Which KV blocks are free, and in which order they are used again."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from qwen3_ray.errors import EngineError


class BlockPool:
    """Block ids 0 to `num_blocks - 1`, each with a number of owners.

    A block without an owner is free: blank, or kept, when what it holds may be of use to a later
    owner. Blank blocks are handed out first, the one freed last before the others, while it may
    still be in a CPU cache; then kept ones, the one freed first before the others (LRU). All
    operations cost O(blocks named). Knows nothing of requests, nor of what blocks hold.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # freed first to freed last
        self._num_owners = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still hand out."""
        return len(self._blank) + len(self._kept)

    def num_owners(self, block_id: int) -> int:
        """How many have `block_id`; 0 if it is free."""
        return self._num_owners[block_id]

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks with one owner each; what they held is lost.

        Raises:
            EngineError: fewer are free; nothing is handed out. Callers look at `num_free` first.
        """
        if not 0 <= count <= self.num_free:
            raise EngineError(f"{count} KV blocks were asked for, {self.num_free} are free")
        block_ids = [
            self._blank.pop() if self._blank else self._kept.popitem(last=False)[0]
            for _ in range(count)
        ]
        for block_id in block_ids:
            self._num_owners[block_id] = 1
        return block_ids

    def share(self, block_id: int) -> None:
        """Give a block that is in use or kept one more owner.

        Raises:
            EngineError: it is blank.
        """
        if self._num_owners[block_id] == 0:
            if block_id not in self._kept:
                raise EngineError(f"KV block {block_id} was shared, but it holds nothing")
            del self._kept[block_id]
        self._num_owners[block_id] += 1

    def free(self, block_id: int, *, keep: bool = False) -> None:
        """Take one owner away; the block is free after the last one, and kept if `keep`.

        Raises:
            EngineError: it has no owner (freed twice, or no block of this pool).
        """
        if not (0 <= block_id < self.num_blocks and self._num_owners[block_id]):
            raise EngineError(f"KV block {block_id} was freed, but it is not in use")
        self._num_owners[block_id] -= 1
        if self._num_owners[block_id] == 0:
            if keep:
                self._kept[block_id] = None
            else:
                self._blank.append(block_id)

    def blank_kept(self) -> None:
        """Nothing that kept blocks hold is of use any more."""
        self._blank += self._kept
        self._kept.clear()

    def check_integrity(self, held: Sequence[int], kept: Iterable[int]) -> None:
        """Check the books against those of the owners.

        Args:
            held: every block its owners believe to have, as often as it has owners.
            kept: every block without an owner whose content is believed to be of use.

        Raises:
            EngineError: a block is lost, has too many or too few owners, or is blank and in use.
        """
        owners = Counter(held)
        if [owners[block_id] for block_id in range(self.num_blocks)] != self._num_owners or sorted(
            [*self._blank, *self._kept, *owners]
        ) != list(range(self.num_blocks)):
            raise EngineError(
                f"KV blocks lost or shared: {self.num_blocks} in all, "
                f"{self.num_free} free, {len(owners)} held by requests"
            )
        if set(kept) != set(self._kept):
            raise EngineError(
                f"{len(self._kept)} free KV blocks are kept, but not those of the prefix cache"
            )
