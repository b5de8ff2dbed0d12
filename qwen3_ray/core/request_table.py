"""Where each request is: waiting, or running with KV blocks of its own."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.running_set import RunningSet
from qwen3_ray.core.token_budget import PLACES
from qwen3_ray.core.waiting_queue import WaitingQueue
from qwen3_ray.errors import EngineError


class RequestTable:
    """Moves requests between the queue, the running ones and the end, and their blocks with them.

    What is parked for the content of a block comes back when that is computed or given up.
    """

    def __init__(self, kv: KVManager) -> None:
        self.kv = kv
        self.waiting = WaitingQueue()
        self.running = RunningSet()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.running or request_id in self.waiting

    def start(self, found: Sequence[int]) -> bool:
        """Let the first waiting request run, with the blocks `found` for it; there must be room.

        Returns:
            Whether it is its first time: then what they hold of its prompt is in its state.
        """
        request = self.waiting.pop()
        self.kv.admit(request, found)
        self.running.add(request)
        is_first = request.num_cached_tokens is None
        if is_first:
            request.num_cached_tokens = min(request.num_computed_tokens, request.prompt_len)
        return is_first

    def advance(self, request: RequestState, num_tokens: int) -> None:
        """Note that `num_tokens` more known tokens of `request` are computed."""
        for content in self.kv.advance(request, num_tokens):
            self.waiting.unpark(content)

    def give_back(self, victim: RequestState) -> None:
        """Let `victim`, which runs, wait for its next turn, without blocks."""
        self.remove(victim.request_id)
        self.waiting.push(victim)

    def remove(self, request_id: str) -> bool:
        """Forget a request, in O(its blocks); False when it is unknown."""
        request = self.running.remove(request_id)
        if request is None:
            return self.waiting.remove(request_id)
        for content in self.kv.release(request):
            self.waiting.unpark(content)
        return True

    def reset_prefix_cache(self) -> None:
        """Let no request find what was computed before; running ones keep what they have."""
        self.kv.reset_prefix_cache()
        self.waiting.unpark_all()

    def check_integrity(self) -> None:
        """Check the books: blocks, states and the count of waiting tokens. O(everything).

        Raises:
            EngineError: a block is lost or shared, or a request is in a state that cannot be.
        """
        self.kv.check_integrity(self.running)
        self.kv.check_claimed(self.waiting.events - set(PLACES))
        for request in self.running:
            if request.request_id in self.waiting or request.num_pending_tokens < 1:
                raise EngineError(f"request {request.request_id} runs, but has nothing to compute")
        for request in self.waiting:
            if request.block_ids or request.num_computed_tokens:
                raise EngineError(f"request {request.request_id} waits, but holds KV blocks")
        num_tokens = sum(request.num_pending_tokens for request in self.waiting)
        if num_tokens != self.waiting.num_tokens:
            raise EngineError(
                f"{self.waiting.num_tokens} waiting tokens are counted, {num_tokens} wait"
            )
