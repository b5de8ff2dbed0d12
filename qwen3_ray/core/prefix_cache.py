"""Which KV block holds which tokens, so that a prompt which begins like another one finds it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence

from qwen3_ray.errors import EngineError


def root_hash(salt: str) -> bytes:
    """What the first block's hash builds on. Requests of different salts find nothing common."""
    return hashlib.sha256(salt.encode(errors="surrogatepass")).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """256-bit name of a full block's content: keys and values follow from all tokens up to it.

    Args:
        parent: hash of the block before, or `root_hash`.
        token_ids: the block's tokens, each below 2**32.

    No one can find two contents of one name (SHA-256), so nobody reads another one's cache by a
    prompt made for it.
    """
    return hashlib.sha256(parent + struct.pack(f"<{len(token_ids)}I", *token_ids)).digest()


class PrefixCache:
    """A map from content to block. One block for each content; a second one stays unnamed.

    All operations cost O(blocks named). Whether a block is free is not known here.
    """

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._hashes

    def __iter__(self) -> Iterator[int]:
        """Every block that can be found."""
        return iter(self._hashes)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold `hashes`, up to the first one that none holds."""
        found = []
        for hash_ in hashes:
            block_id = self._blocks.get(hash_)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def insert(self, hash_: bytes, block_id: int) -> None:
        """Note that `block_id` holds `hash_`, if no block is known to."""
        if hash_ not in self._blocks:
            self._blocks[hash_] = block_id
            self._hashes[block_id] = hash_

    def forget(self, block_id: int) -> None:
        """Note that `block_id` is about to hold something else; it may be unnamed."""
        hash_ = self._hashes.pop(block_id, None)
        if hash_ is not None:
            del self._blocks[hash_]

    def clear(self) -> None:
        """Forget all blocks."""
        self._blocks.clear()
        self._hashes.clear()

    def check_holds(self, block_id: int, hash_: bytes) -> None:
        """Raise EngineError if `block_id` is known to hold something else than `hash_`."""
        if self._hashes.get(block_id, hash_) != hash_:
            raise EngineError(f"KV block {block_id} is cached under a wrong hash")
