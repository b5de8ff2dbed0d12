"""Which tokens of which requests the next step computes, and when a request is done.

There are no phases: a request is `num_tokens` against `num_computed_tokens`, and a step works on
the gap of many requests under one token budget. Ids only: text, clocks and devices are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.core.waiting_queue import WaitingQueue
from qwen3_ray.errors import EngineError, PromptTooLongError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta


class Scheduler:
    """Continuous batching over paged KV blocks: one loop, one token budget.

    `schedule()` plans a step, the caller computes it, `commit()` takes the sampled ids. `add` and
    `abort` may come at any time but between the two. A plan that was never committed is harmless:
    the next one starts from the same state.

    Fair by arrival: everything that runs is older than everything that waits. When blocks run out
    the youngest requests lose theirs and recompute later, prompt and output alike, so the oldest
    always gets on and every request ends. Cost of a step: O(running requests + blocks given).
    """

    def __init__(
        self,
        *,
        kv: KVManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._kv = kv
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._waiting = WaitingQueue()
        self._running: dict[str, RequestState] = {}  # oldest first
        self._num_preemptions = 0

    @property
    def has_unfinished(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self._running) or len(self._waiting) > 0

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first step, or for their next after a preemption."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Known tokens still to compute, not counting the last one of each running request.

        In other words: all prefill work, queued or begun; decoding requests count for nothing.
        """
        begun = sum(request.num_pending_tokens - 1 for request in self._running.values())
        return self._waiting.num_tokens + begun

    @property
    def num_preemptions(self) -> int:
        """Times that a request lost its blocks to an older one."""
        return self._num_preemptions

    def add(self, request: GenerateRequest) -> None:
        """Queue a request. A `max_tokens` beyond the room there is ends with `LENGTH`.

        Raises:
            PromptTooLongError: prompt and one output token exceed the context or the KV cache.
            RequestError: the prompt is empty, or the id is that of an unfinished request.
        """
        if request.request_id in self._running or request.request_id in self._waiting:
            raise RequestError("request_id", f"{request.request_id!r} is being served already")
        self._check_prompt_len(len(request.prompt_token_ids))
        self._waiting.push(
            RequestState(
                request_id=request.request_id,
                token_ids=list(request.prompt_token_ids),
                prompt_len=len(request.prompt_token_ids),
                params=request.params,
                choice=request.choice,
            )
        )

    def _check_prompt_len(self, prompt_len: int) -> None:
        if prompt_len == 0:
            raise RequestError("prompt", "must hold at least one token")
        if prompt_len >= self._max_model_len:
            raise PromptTooLongError(
                "prompt",
                f"has {prompt_len} tokens, at most {self._max_model_len - 1} fit the context of "
                f"{self._max_model_len} with one output token",
            )
        if prompt_len >= self._kv.capacity:
            raise PromptTooLongError(
                "prompt",
                f"has {prompt_len} tokens, at most {self._kv.capacity - 1} fit the KV cache of "
                f"this engine with one output token",
            )

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks, in O(its blocks); False when it is unknown."""
        request = self._running.pop(request_id, None)
        if request is None:
            return self._waiting.remove(request_id)
        self._kv.release(request)
        return True

    def schedule(self) -> Step:
        """Spend the token budget on running requests first, then admit waiting ones.

        The step is empty only when nothing is unfinished.
        """
        budget = self._max_num_batched_tokens
        scheduled: list[ScheduledRequest] = []
        for request in list(self._running.values()):
            num_new = min(request.num_pending_tokens, budget)
            # A preempted request takes no part, nor do the younger ones: they left before it.
            if num_new == 0 or request.request_id not in self._running:
                break
            if not self._grow_or_preempt(request, num_new):
                break
            scheduled.append(ScheduledRequest(request, num_new))
            budget -= num_new
        # One preempted just now does not fit back (else nobody had needed its blocks), and being
        # first in the queue it keeps the others out.
        self._admit(scheduled, budget)
        return Step(tuple(scheduled))

    def _grow_or_preempt(self, request: RequestState, num_new_tokens: int) -> bool:
        """Find blocks for `request`, if need be those of younger ones; False if it lost its own."""
        while not self._kv.grow(request, num_new_tokens):
            _, victim = self._running.popitem()
            self._kv.release(victim)
            self._waiting.push_front(victim)
            self._num_preemptions += 1
            if victim is request:
                return False
        return True

    def _admit(self, scheduled: list[ScheduledRequest], budget: int) -> None:
        """Start waiting requests, in order, while budget, places and blocks last.

        One whose tokens do not all fit now must wait, even if its first chunk would: it would be
        preempted halfway through its prompt. None overtakes it.
        """
        while budget > 0 and len(self._running) < self._max_num_seqs:
            request = self._waiting.peek()
            if request is None or not self._kv.has_room(request.num_tokens + 1):
                return
            self._waiting.pop()
            self._running[request.request_id] = request
            num_new = min(request.num_pending_tokens, budget)
            self._kv.grow(request, num_new)
            scheduled.append(ScheduledRequest(request, num_new))
            budget -= num_new

    def commit(self, step: Step, sampled: Sequence[Sampled]) -> list[TokenDelta]:
        """Note that `step` was computed, and append the ids that it sampled.

        Args:
            step: what the last `schedule()` returned.
            sampled: one for each request of the step, in its order.

        Returns:
            One delta for each request that got something, in the same order. A finished request
            is gone.

        Raises:
            EngineError: the number of results is wrong; nothing is changed.
        """
        if len(sampled) != len(step.scheduled):
            raise EngineError(f"{len(sampled)} results came for {len(step.scheduled)} requests")
        deltas = []
        for item, result in zip(step.scheduled, sampled, strict=True):
            samples = item.samples
            item.request.num_computed_tokens += item.num_new_tokens
            if result.problem is not None:
                deltas.append(self._fail(item.request, result.problem))
            elif samples:
                deltas.append(self._append(item.request, result))
        return deltas

    def _fail(self, request: RequestState, problem: str) -> TokenDelta:
        self.abort(request.request_id)
        return TokenDelta(
            request_id=request.request_id, finish_reason=FinishReason.ERROR, error=problem
        )

    def _append(self, request: RequestState, result: Sampled) -> TokenDelta:
        (token_id,) = result.token_ids
        request.token_ids.append(token_id)
        finish_reason, stop_token_id = self._finish(request, token_id)
        if finish_reason is not None:
            del self._running[request.request_id]
            self._kv.release(request)
        return TokenDelta(
            request_id=request.request_id,
            token_ids=(token_id,),
            finish_reason=finish_reason,
            stop_reason=stop_token_id,
        )

    def _finish(
        self, request: RequestState, token_id: int
    ) -> tuple[FinishReason | None, int | None]:
        """Why `request` ends with `token_id`, if it does, and the stop token id that ended it."""
        params = request.params
        if token_id in self._eos_token_ids and not params.ignore_eos:
            return FinishReason.STOP, None
        if token_id in params.stop_token_ids:
            return FinishReason.STOP, token_id
        # The KV cache bounds the length too: a request that outgrew it alone could never go on.
        if (
            request.num_output_tokens == params.max_tokens
            or request.num_tokens >= self._max_model_len
            or request.num_tokens >= self._kv.capacity
        ):
            return FinishReason.LENGTH, None
        return None, None

    def check_integrity(self) -> None:
        """Check the books: blocks, states and the count of waiting tokens. O(everything).

        Raises:
            EngineError: a block is lost or shared, or a request is in a state that cannot be.
        """
        self._kv.check_integrity(self._running.values())
        for request in self._running.values():
            if request.request_id in self._waiting or request.num_pending_tokens < 1:
                raise EngineError(f"request {request.request_id} runs, but has nothing to compute")
        for request in self._waiting:
            if request.block_ids or request.num_computed_tokens:
                raise EngineError(f"request {request.request_id} waits, but holds KV blocks")
        num_tokens = sum(request.num_pending_tokens for request in self._waiting)
        if num_tokens != self._waiting.num_tokens:
            raise EngineError(
                f"{self._waiting.num_tokens} waiting tokens are counted, {num_tokens} wait"
            )
