"""KV blocks of the running requests."""

from __future__ import annotations

from collections.abc import Iterable

from qwen3_ray.core.block_pool import BlockPool
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.errors import EngineError


class KVManager:
    """Gives requests the blocks that their tokens need, and takes them back."""

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._pool.num_blocks

    @property
    def capacity(self) -> int:
        """Tokens that fit when one request has the whole cache."""
        return self._pool.num_blocks * self.block_size

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return 1.0 - self._pool.num_free / self._pool.num_blocks

    def has_room(self, num_tokens: int) -> bool:
        """Whether `num_tokens` of one new request fit into the free blocks."""
        return num_tokens <= self._pool.num_free * self.block_size

    def grow(self, request: RequestState, num_new_tokens: int) -> bool:
        """Give `request` room for its computed and `num_new_tokens` more tokens.

        False, and nothing changes, when too few blocks are free. Asking again for no more than
        was granted before takes nothing.
        """
        num_tokens = request.num_computed_tokens + num_new_tokens
        num_needed = -(-num_tokens // self.block_size) - len(request.block_ids)
        if num_needed > self._pool.num_free:
            return False
        if num_needed > 0:
            request.block_ids += self._pool.allocate(num_needed)
        return True

    def release(self, request: RequestState) -> None:
        """Take back all blocks of `request`, and with them its computed tokens."""
        self._pool.free(request.block_ids)
        request.block_ids = []
        request.num_computed_tokens = 0

    def check_integrity(self, requests: Iterable[RequestState]) -> None:
        """Check that `requests`, all that hold blocks, hold exactly the blocks in use.

        Raises:
            EngineError: a block is lost or shared, or a request has too few for its tokens.
        """
        held: list[int] = []
        for request in requests:
            held += request.block_ids
            if request.num_computed_tokens > len(request.block_ids) * self.block_size:
                raise EngineError(
                    f"request {request.request_id} has {request.num_computed_tokens} computed "
                    f"tokens in {len(request.block_ids)} blocks of {self.block_size}"
                )
        self._pool.check_integrity(held)
