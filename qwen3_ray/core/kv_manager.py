"""KV blocks of the running requests, and what earlier ones left in blocks that are free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from qwen3_ray.core.block_pool import BlockPool
from qwen3_ray.core.prefix_cache import PrefixCache, block_hash, root_hash
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.errors import EngineError


class KVManager:
    """Gives requests the blocks that their tokens need, and takes them back.

    A block whose tokens are all known and computed is named in the prefix cache, for as long as
    its content lasts. Requests that begin alike share such blocks, and none of them ever writes
    to one again: a request shares full blocks only, and goes on in a block of its own.

    Without `enable_prefix_caching` no content outlives its owners, and nothing is shared but
    among the choices of one request.
    """

    def __init__(
        self, *, num_blocks: int, block_size: int, enable_prefix_caching: bool = True
    ) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._cache = PrefixCache()
        self._enable_prefix_caching = enable_prefix_caching
        self._epoch = 0
        self._claims: dict[bytes, RequestState] = {}
        """Who is about to compute the contents that running requests' known tokens have."""

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
        """Share of the blocks in use, 0 to 1. A block that is only kept for later is not."""
        return 1.0 - self._pool.num_free / self._pool.num_blocks

    def find(self, request: RequestState) -> list[int]:
        """Cached blocks that hold the first tokens of `request`, which waits.

        They end before its last token, since a step needs one to compute, and before the first
        one whose prompt logprob it still wants, which a cached block cannot give.
        """
        self._hash_blocks(request)
        return self._cache.find(islice(request.block_hashes, self._most_found(request)))

    def find_claim(self, request: RequestState, num_found: int) -> bytes | None:
        """What `request`, which waits and found `num_found` blocks, should wait for.

        The last content that it shares with a running request which is about to compute the next
        one that it misses; None when there is none. It does not wait for a less urgent one.
        """
        last = None
        for hash_ in islice(request.block_hashes, num_found, self._most_found(request)):
            claimant = self._claims.get(hash_)
            if claimant is None or claimant.rank[0] > request.rank[0]:
                break
            last = hash_
        return last

    def has_room(self, request: RequestState, found: Sequence[int]) -> bool:
        """Whether all tokens of `request`, which waits, and one more fit: in `found` and free ones.

        A found block that nobody uses is one of the free ones: to take it leaves one less.
        """
        num_idle = sum(self._pool.num_owners(block_id) == 0 for block_id in found)
        num_missing = self._num_blocks(request.num_tokens + 1) - len(found)
        return num_missing <= self._pool.num_free - num_idle

    def admit(self, request: RequestState, found: Sequence[int]) -> None:
        """Give `request`, for which there is room, blocks for all its tokens; `found` ones first.

        It is then about to compute the contents that it did not find, for others as well.
        """
        for block_id in found:
            self._pool.share(block_id)
        request.block_ids = list(found)
        request.num_computed_tokens = len(found) * self.block_size
        request.cache_epoch = self._epoch
        self.grow(request, request.num_pending_tokens)
        # One that wants prompt logprobs is slower than others would be by themselves.
        if request.num_prompt_logprobs_left == 0:
            for hash_ in islice(request.block_hashes, len(found), None):
                self._claims.setdefault(hash_, request)

    def room_of(self, request: RequestState) -> int:
        """Tokens that `grow` can make room for, beyond those that `request` has computed."""
        num_blocks = len(request.block_ids) + self._pool.num_free
        return num_blocks * self.block_size - request.num_computed_tokens

    def grow(self, request: RequestState, num_new_tokens: int) -> bool:
        """Give `request` room for its computed and `num_new_tokens` more tokens.

        False, and nothing changes, when too few blocks are free. Asking again for no more than
        was granted before takes nothing.
        """
        num_tokens = request.num_computed_tokens + num_new_tokens
        if num_tokens <= len(request.block_ids) * self.block_size:
            return True
        num_missing = self._num_blocks(num_tokens) - len(request.block_ids)
        if num_missing > self._pool.num_free:
            return False
        block_ids = self._pool.allocate(num_missing)
        for block_id in block_ids:
            self._cache.forget(block_id)
        request.block_ids += block_ids
        return True

    def advance(self, request: RequestState, num_new_tokens: int) -> list[bytes]:
        """Note that `num_new_tokens` more known tokens of `request` are computed.

        Returns:
            What can be found in the cache from now on.
        """
        first = request.num_computed_tokens // self.block_size
        request.num_computed_tokens += num_new_tokens
        stop = request.num_computed_tokens // self.block_size
        if stop == first or request.cache_epoch != self._epoch:
            return []
        self._hash_blocks(request)
        hashes = request.block_hashes[first:stop]
        for hash_, block_id in zip(hashes, request.block_ids[first:stop], strict=False):
            self._cache.insert(hash_, block_id)
            self._drop_claim(hash_, request)
        return hashes

    def trim(self, request: RequestState) -> None:
        """Take back the blocks behind the known tokens of `request`, which drafts were given."""
        count = self._num_blocks(request.num_tokens)
        for block_id in reversed(request.block_ids[count:]):
            self._free(block_id)
        del request.block_ids[count:]

    def release(self, request: RequestState) -> list[bytes]:
        """Take back all blocks of `request`, and with them its computed tokens.

        The last block goes first, so that the tail of a content is lost before its head.

        Returns:
            What it will not compute, although it was about to.
        """
        num_computed_blocks = request.num_computed_tokens // self.block_size
        dropped = [
            hash_
            for hash_ in islice(request.block_hashes, num_computed_blocks, None)
            if self._drop_claim(hash_, request)
        ]
        for block_id in reversed(request.block_ids):
            self._free(block_id)
        request.block_ids = []
        request.num_computed_tokens = 0
        return dropped

    def disown(self, request: RequestState) -> None:
        """Nobody shall find the blocks of `request`: what they hold may be wrong."""
        for block_id in request.block_ids:
            self._cache.forget(block_id)

    def reset_prefix_cache(self) -> None:
        """Nobody finds anything that is computed up to now, nor what running requests add to it.

        They keep their blocks. Whoever waits for a claim waits in vain.
        """
        self._epoch += 1
        self._cache.clear()
        self._claims.clear()
        self._pool.blank_kept()

    def check_integrity(self, requests: Iterable[RequestState]) -> None:
        """Check that `requests`, all that hold blocks, hold exactly the blocks in use.

        Raises:
            EngineError: a block is lost, shared wrongly or cached under a wrong name, a request
                has too few for its tokens, or a claim has nobody to fulfil it.
        """
        held: list[int] = []
        num_claims = 0
        for request in requests:
            held += request.block_ids
            self._check_blocks(request)
            num_claims += sum(self._claims.get(hash_) is request for hash_ in self._ahead(request))
        kept = [block_id for block_id in self._cache if self._pool.num_owners(block_id) == 0]
        self._pool.check_integrity(held, kept)
        if num_claims != len(self._claims):
            raise EngineError(f"{len(self._claims)} contents are claimed, {num_claims} with right")

    def check_claimed(self, hashes: Iterable[bytes]) -> None:
        """Raise EngineError if no running request is about to compute one of `hashes`."""
        if not self._claims.keys() >= set(hashes):
            raise EngineError("a request waits for a content that nobody computes")

    def _check_blocks(self, request: RequestState) -> None:
        if request.num_computed_tokens > len(request.block_ids) * self.block_size:
            raise EngineError(
                f"request {request.request_id} has {request.num_computed_tokens} computed "
                f"tokens in {len(request.block_ids)} blocks of {self.block_size}"
            )
        for block_id, hash_ in zip(request.block_ids, request.block_hashes, strict=False):
            self._cache.check_holds(block_id, hash_)
        for block_id in request.block_ids[request.num_computed_tokens // self.block_size :]:
            if self._pool.num_owners(block_id) != 1 or block_id in self._cache:
                raise EngineError(
                    f"KV block {block_id} is shared, but request {request.request_id} writes to it"
                )

    def _ahead(self, request: RequestState) -> Iterable[bytes]:
        """Contents that `request` has not computed yet."""
        return islice(request.block_hashes, request.num_computed_tokens // self.block_size, None)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _most_found(self, request: RequestState) -> int:
        """Most blocks that `request` may take from the cache."""
        num_tokens = request.num_tokens - 1
        if request.num_prompt_logprobs_left > 0:
            num_tokens = min(num_tokens, request.num_prompt_logprobs)
        return num_tokens // self.block_size

    def _hash_blocks(self, request: RequestState) -> None:
        """Name the full blocks of `request` that have no name yet, if it may share any."""
        salt = request.cache_salt
        if not self._enable_prefix_caching:
            if request.params.n == 1:
                return
            salt = f"{request.params.seed} {salt}"
        hashes, size = request.block_hashes, self.block_size
        for start in range(len(hashes) * size, request.num_tokens - size + 1, size):
            parent = hashes[-1] if hashes else root_hash(salt)
            hashes.append(block_hash(parent, request.token_ids[start : start + size]))

    def _drop_claim(self, hash_: bytes, request: RequestState) -> bool:
        if self._claims.get(hash_) is not request:
            return False
        del self._claims[hash_]
        return True

    def _free(self, block_id: int) -> None:
        is_last = self._pool.num_owners(block_id) == 1
        if is_last and not self._enable_prefix_caching:
            self._cache.forget(block_id)
        self._pool.free(block_id, keep=block_id in self._cache)
