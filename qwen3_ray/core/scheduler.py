"""Which tokens of which requests the next step computes, and when a request is done.

There are no phases: a request is `num_tokens` against `num_computed_tokens`, and a step works on
the gap of many requests under one token budget. Ids only: text, clocks and devices are unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen3_ray.core.deltas import make_delta
from qwen3_ray.core.drafting import Drafting
from qwen3_ray.core.finish import End, EndRules
from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.limits import check_prompt_len
from qwen3_ray.core.prompt_lookup import PromptLookup
from qwen3_ray.core.request_state import Lookup, RequestState
from qwen3_ray.core.request_table import RequestTable
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.core.token_budget import PrefillBudget, Verdict
from qwen3_ray.core.totals import Totals
from qwen3_ray.errors import EngineError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta


class Scheduler:
    """Continuous batching over paged KV blocks: one loop, one token budget.

    `schedule()` plans a step, the caller computes it, `commit()` takes the sampled ids. `add`,
    `abort` and `reset_prefix_cache` may come at any time but between the two. A plan that was
    never committed is harmless: the next one starts from the same state.

    Requests are served by priority, and by arrival among equals. When blocks run out the last ones
    in this order lose theirs and recompute later what the prefix cache has lost, prompt and output
    alike, so the first one always gets on and every request ends. Cost of a step: O(running
    and new requests + blocks given or found); to wait costs nothing.

    Args:
        num_speculative_tokens: most tokens to guess ahead for one request; 0 for none.
        make_lookup: makes what one request's guesses come from.
        num_lookahead_tokens: for which a request gets room, if there is any, beyond its step.
    """

    def __init__(
        self,
        *,
        kv: KVManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        num_speculative_tokens: int = 0,
        make_lookup: Callable[[int], Lookup] = PromptLookup,
        num_lookahead_tokens: int = 0,
    ) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_model_len = max_model_len
        self._num_lookahead_tokens = num_lookahead_tokens
        self._kv = kv
        self._table = RequestTable(kv)
        self._rules = EndRules(eos_token_ids, min(max_model_len, kv.capacity))
        self._drafting = Drafting(
            kv, self._rules, max_drafts=num_speculative_tokens, make_lookup=make_lookup
        )
        self._ended: dict[str, RequestState] = {}  # resumes that came with all of their output
        self._num_arrivals = 0
        self.totals = Totals()

    @property
    def has_unfinished(self) -> bool:
        """Whether a request runs or waits, or an end is still to be told."""
        return self.num_running > 0 or self.num_waiting > 0 or len(self._ended) > 0

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self._table.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first step, or for their next after a preemption."""
        return len(self._table.waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Known tokens still to compute, not counting the last one of each running request.

        In other words: all prefill work, queued or begun; decoding requests count for nothing.
        What the prefix cache will save of queued work is not known yet, and counts.
        """
        begun = sum(request.num_pending_tokens - 1 for request in self._table.running)
        return self._table.waiting.num_tokens + begun

    def add(self, request: GenerateRequest) -> None:
        """Queue a request. A `max_tokens` beyond the room there is ends with `LENGTH`.

        Output that comes with it (a resume) is recomputed like a prompt, but counts as output. If
        it has reached its end already, the next `commit` says so, and nothing is computed.

        Raises:
            PromptTooLongError: prompt and one output token exceed the context or the KV cache.
            RequestError: the prompt is empty, or the id is that of an unfinished request.
        """
        if request.request_id in self._table or request.request_id in self._ended:
            raise RequestError("request_id", f"{request.request_id!r} is being served already")
        check_prompt_len(
            len(request.prompt_token_ids),
            max_model_len=self._max_model_len,
            kv_capacity=self._kv.capacity,
        )
        state = RequestState.of(request, self._num_arrivals)
        self._num_arrivals += 1
        if state.num_output_tokens > 0 and self._rules.end_of(state) is not None:
            state.num_cached_tokens = 0
            self._ended[request.request_id] = state
        else:
            self._table.waiting.push(state)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks, in O(its blocks); False when it is unknown."""
        return self._table.remove(request_id) or self._ended.pop(request_id, None) is not None

    def reset_prefix_cache(self) -> None:
        """Let no request find what was computed before; running ones keep what they have."""
        self._table.reset_prefix_cache()

    def schedule(self) -> Step:
        """Spend the token budget: on decoding requests, then on prompts, then on drafts.

        All decoding requests take part, so no prompt delays them by more than the one step that
        it shares with them. The step is empty only when nothing runs or waits.
        """
        decodes = self._grow_decodes()
        budget = PrefillBudget(
            self._max_num_batched_tokens - len(decodes),
            (request for request in self._table.running if request.num_pending_tokens > 1),
        )
        newcomers = self._admit(budget)
        prefills = [ScheduledRequest(*share) for share in budget.shares() if share[1] > 0]
        prefills += newcomers
        num_tokens = len(decodes) + sum(item.num_new_tokens for item in prefills)
        drafted = self._drafting.draft(decodes, self._max_num_batched_tokens - num_tokens)
        self._grow_ahead((*drafted, *prefills))
        return Step((*drafted, *prefills))

    def _grow_ahead(self, scheduled: Sequence[ScheduledRequest]) -> None:
        """Give those that will go on room for more tokens, of the blocks that the step leaves."""
        for request, num_new_tokens, _ in scheduled if self._num_lookahead_tokens else ():
            count = min(self._num_lookahead_tokens, self._rules.num_tokens_left(request) - 1)
            if count > 0:
                self._kv.grow(request, num_new_tokens + count)

    def _grow_decodes(self) -> list[RequestState]:
        """The requests of which one known token is to be computed, with room for it."""
        running = self._table.running
        decodes: list[RequestState] = []
        for index, request in enumerate(list(running)):
            if request.num_pending_tokens > 1:
                continue
            # Preempted requests take no part: the last ones, so that those after them left too.
            if (
                len(decodes) == self._max_num_batched_tokens
                or index >= len(running)
                or not self._grow_or_preempt(request)
            ):
                break
            decodes.append(request)
        return decodes

    def _grow_or_preempt(self, request: RequestState) -> bool:
        """Find room for a token, if need be in blocks of others; False if it lost its own."""
        while not self._kv.grow(request, 1):
            victim = self._table.running.last
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: RequestState) -> None:
        self._table.give_back(victim)
        self.totals.num_preemptions += 1

    def _admit(self, budget: PrefillBudget) -> list[ScheduledRequest]:
        """Start waiting requests, in order, while budget, places and blocks last.

        One whose tokens do not all fit now must wait, even if its first chunk would: it would be
        preempted halfway through its prompt. None overtakes it. One that was preempted in this
        step does not fit back, else nobody had needed its blocks.

        Returns:
            Those that are computed at once. The others have joined the prefills of `budget`.
        """
        scheduled: list[ScheduledRequest] = []
        while budget.num_tokens > 0 and self.num_running < self._max_num_seqs:
            request = self._table.waiting.peek(budget.places)
            if request is None:
                break
            found = self._kv.find(request)
            verdict = budget.judge(request, len(found) * self._kv.block_size)
            if self._park(request, found, verdict, budget):
                continue
            if verdict is Verdict.LATER or not self._kv.has_room(request, found):
                break
            if self._table.start(found):
                self.totals.note_found(request)
            if verdict is Verdict.WHOLE:
                scheduled.append(ScheduledRequest(request, budget.take_all(request)))
            else:
                budget.join(request)
        return scheduled

    def _park(
        self, request: RequestState, found: list[int], verdict: Verdict, budget: PrefillBudget
    ) -> bool:
        """Set `request`, the first one that waits, aside if it must wait for another to get on.

        One that needs a content which a running request is about to compute waits until that is
        done or given up, and then finds it. Others go past it meanwhile, but none of them claims a
        content that it needs: to need it too is to be parked too. So it waits at most for
        requests that come before it, or were running when its turn came.

        One that is too long for a step waits for a place among the prefills in flight, which a
        less urgent one gives up. Shorter ones go past it, but none of them can take the place.

        Returns:
            Whether another request may be the first one now.
        """
        content = self._kv.find_claim(request, len(found))
        if content is not None:
            self._table.waiting.park(content)
            return True
        if verdict is not Verdict.NO_PLACE:
            return False
        victim = budget.leave(request.rank[0]) if self._kv.has_room(request, found) else None
        if victim is None:
            self._table.waiting.park(budget.refuse(request))
        else:
            self._preempt(victim)
        return True

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
            self._table.remove(request.request_id)
            return make_delta(request, End(FinishReason.ERROR), error=result.problem)
        num_rows = len(item.prompt_logprob_rows)
        num_computed, num_drafts = item.num_new_tokens, item.num_drafts
        num_appended, end = 0, None
        if item.samples:
            num_appended, end = self._rules.append(request, result)
        if num_drafts > 0:
            num_right = result.count_accepted(request.draft_token_ids[:num_drafts])
            # An accepted draft that was not appended is no token of the request.
            num_accepted = min(num_right, num_appended)
            num_computed += num_accepted - num_drafts
            self.totals.num_draft_tokens += num_drafts
            self.totals.num_accepted_tokens += num_accepted
            self._drafting.observe(request, num_drafts, num_right)
        self._table.advance(request, num_computed)
        request.num_prompt_logprobs += num_rows
        if end is not None:
            self._table.remove(request.request_id)
        if end is None and not num_appended and not result.prompt_logprobs:
            return None
        return make_delta(request, end, result, num_appended=num_appended)

    def check_integrity(self) -> None:
        """Raise EngineError if a block is lost or shared wrongly, or a state cannot be."""
        self._table.check_integrity()
