"""Which tokens of which requests the next step computes, and when a request is done.

There are no phases: a request is `num_tokens` against `num_computed_tokens`, and a step works on
the gap of many requests under one token budget. Ids only: text, clocks and devices are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_ray.core.deltas import make_delta
from qwen3_ray.core.finish import End, EndRules
from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.running_set import RunningSet
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.core.waiting_queue import WaitingQueue
from qwen3_ray.errors import EngineError, PromptTooLongError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta


class Scheduler:
    """Continuous batching over paged KV blocks: one loop, one token budget.

    `schedule()` plans a step, the caller computes it, `commit()` takes the sampled ids. `add` and
    `abort` may come at any time but between the two. A plan that was never committed is harmless:
    the next one starts from the same state.

    Requests are served by priority, and by arrival among equals. When blocks run out the last ones
    in this order lose theirs and recompute later what the prefix cache has lost, prompt and output
    alike, so the first one always gets on and every request ends. Cost of a step: O(running
    requests + blocks given or found).
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
        self._rules = EndRules(eos_token_ids, min(max_model_len, kv.capacity))
        self._waiting = WaitingQueue()
        self._running = RunningSet()
        self._ended: dict[str, RequestState] = {}  # resumes that came with all of their output
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._num_prefix_queries = 0
        self._num_prefix_hits = 0

    @property
    def has_unfinished(self) -> bool:
        """Whether a request runs or waits, or an end is still to be told."""
        return len(self._running) > 0 or len(self._waiting) > 0 or len(self._ended) > 0

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
        begun = sum(request.num_pending_tokens - 1 for request in self._running)
        return self._waiting.num_tokens + begun

    @property
    def num_preemptions(self) -> int:
        """Times that a request lost its blocks to one that comes before it."""
        return self._num_preemptions

    @property
    def num_prefix_queries(self) -> int:
        """Prompt tokens of the requests that looked into the prefix cache when they first began."""
        return self._num_prefix_queries

    @property
    def num_prefix_hits(self) -> int:
        """Those of them that it held."""
        return self._num_prefix_hits

    def add(self, request: GenerateRequest) -> None:
        """Queue a request. A `max_tokens` beyond the room there is ends with `LENGTH`.

        Output that comes with it (a resume) is recomputed like a prompt, but counts as output. If
        it has reached its end already, the next `commit` says so, and nothing is computed.

        Raises:
            PromptTooLongError: prompt and one output token exceed the context or the KV cache.
            RequestError: the prompt is empty, or the id is that of an unfinished request.
        """
        if any(request.request_id in ids for ids in (self._running, self._waiting, self._ended)):
            raise RequestError("request_id", f"{request.request_id!r} is being served already")
        self._check_prompt_len(len(request.prompt_token_ids))
        state = RequestState.of(request, self._num_arrivals)
        self._num_arrivals += 1
        if state.num_output_tokens > 0 and self._rules.end_of(state) is not None:
            state.num_cached_tokens = 0
            self._ended[request.request_id] = state
        else:
            self._waiting.push(state)

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
        request = self._running.remove(request_id)
        if request is None:
            is_ended = self._ended.pop(request_id, None) is not None
            return is_ended or self._waiting.remove(request_id)
        self._release(request)
        return True

    def reset_prefix_cache(self) -> None:
        """Let no request find what was computed before; running ones keep what they have."""
        self._kv.reset_prefix_cache()
        self._waiting.unpark_all()

    def _release(self, request: RequestState) -> None:
        for content in self._kv.release(request):
            self._waiting.unpark(content)

    def schedule(self) -> Step:
        """Spend the token budget on running requests first, then admit waiting ones.

        The step is empty only when nothing is unfinished.
        """
        budget = self._max_num_batched_tokens
        scheduled: list[ScheduledRequest] = []
        for request in list(self._running):
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
        """Find blocks for `request`, if need be those of others; False if it lost its own."""
        while not self._kv.grow(request, num_new_tokens):
            victim = self._running.pop_last()
            self._release(victim)
            self._waiting.push(victim)
            self._num_preemptions += 1
            if victim is request:
                return False
        return True

    def _admit(self, scheduled: list[ScheduledRequest], budget: int) -> None:
        """Start waiting requests, in order, while budget, places and blocks last.

        One whose tokens do not all fit now must wait, even if its first chunk would: it would be
        preempted halfway through its prompt. None overtakes it.

        One that needs a content which a running request is about to compute is parked until that
        is done or given up, and then finds it. Others go past it meanwhile, but none of them
        claims a content that it needs: to need it too is to be parked. So it waits at most for
        requests that were running when its turn came.
        """
        while budget > 0 and len(self._running) < self._max_num_seqs:
            request = self._waiting.peek()
            if request is None:
                return
            found = self._kv.find(request)
            content = self._kv.find_claim(request, len(found))
            if content is not None:
                self._waiting.park(content)
                continue
            if not self._kv.has_room(request, found):
                return
            self._waiting.pop()
            self._kv.admit(request, found)
            self._running.add(request)
            self._note_hits(request)
            num_new = min(request.num_pending_tokens, budget)
            scheduled.append(ScheduledRequest(request, num_new))
            budget -= num_new

    def _note_hits(self, request: RequestState) -> None:
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(request.num_computed_tokens, request.prompt_len)
            if request.num_prompt_logprobs_left == 0:
                self._num_prefix_queries += request.prompt_len
                self._num_prefix_hits += request.num_cached_tokens

    def commit(self, step: Step, sampled: Sequence[Sampled]) -> list[TokenDelta]:
        """Note that `step` was computed, and append the ids that it sampled.

        Several ids at once (drafts that were right, and one more) count one by one: what comes
        after the one that ends the output is dropped.

        Args:
            step: what the last `schedule()` returned.
            sampled: one for each request of the step, in its order.

        Returns:
            One delta for each request that got something or ended. A finished request is gone.

        Raises:
            EngineError: the number of results is wrong; nothing is changed.
        """
        if len(sampled) != len(step.scheduled):
            raise EngineError(f"{len(sampled)} results came for {len(step.scheduled)} requests")
        deltas = [
            make_delta(request, self._rules.end_of(request)) for request in self._ended.values()
        ]
        self._ended.clear()
        for item, result in zip(step.scheduled, sampled, strict=True):
            delta = self._commit_one(item, result)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def _commit_one(self, item: ScheduledRequest, result: Sampled) -> TokenDelta | None:
        request = item.request
        if result.problem is not None:
            # What it computed may be wrong as well.
            self._kv.disown(request)
            self.abort(request.request_id)
            return make_delta(request, End(FinishReason.ERROR), error=result.problem)
        num_known = item.num_new_tokens - item.num_drafts
        num_accepted = result.count_accepted(request.draft_token_ids[: item.num_drafts])
        num_appended, end = 0, None
        if item.samples:
            num_appended, end = self._rules.append(request, result)
        # An accepted draft that was not appended is no token of the request.
        self._advance(request, num_known + min(num_accepted, num_appended))
        if item.num_drafts > 0:
            self._kv.trim(request)
            request.draft_token_ids = []
        request.num_prompt_logprobs += len(result.prompt_logprobs)
        if end is not None:
            self.abort(request.request_id)
        if end is None and not num_appended and not result.prompt_logprobs:
            return None
        return make_delta(request, end, result, num_appended=num_appended)

    def _advance(self, request: RequestState, num_tokens: int) -> None:
        for content in self._kv.advance(request, num_tokens):
            self._waiting.unpark(content)

    def check_integrity(self) -> None:
        """Check the books: blocks, states and the count of waiting tokens. O(everything).

        Raises:
            EngineError: a block is lost or shared, or a request is in a state that cannot be.
        """
        self._kv.check_integrity(self._running)
        for request in self._running:
            if request.request_id in self._waiting or request.num_pending_tokens < 1:
                raise EngineError(f"request {request.request_id} runs, but has nothing to compute")
        for request in self._waiting:
            if request.block_ids or request.num_computed_tokens:
                raise EngineError(f"request {request.request_id} waits, but holds KV blocks")
        self._kv.check_claimed(self._waiting.events)
        num_tokens = sum(request.num_pending_tokens for request in self._waiting)
        if num_tokens != self._waiting.num_tokens:
            raise EngineError(
                f"{self._waiting.num_tokens} waiting tokens are counted, {num_tokens} wait"
            )
