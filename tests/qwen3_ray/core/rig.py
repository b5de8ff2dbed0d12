"""A scheduler with a fake model whose next token is a hash of what its cache holds.

The model writes every computed token into its block and slot, together with a hash of all that
came before it there, and samples from what it reads back through the block ids. So a block that
is lost, shared wrongly or reused too early, a position left out or computed twice, a draft that
stays, or a prompt recomputed wrongly, changes tokens.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.prompt_lookup import PromptLookup
from qwen3_ray.core.request_state import Lookup
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta, TokenLogprobs
from qwen3_ray.sampling_params import SamplingParams

VOCAB_SIZE = 50
EOS = 7


def next_token(context: list[int]) -> int:
    return zlib.crc32(bytes(context)) % VOCAB_SIZE


def prompt_logprob(context: list[int], token_id: int) -> TokenLogprobs:
    """Of `token_id` after `context`."""
    return TokenLogprobs(token_id=token_id, logprob=-float(next_token(context)), rank=1)


class Slot(NamedTuple):
    """Keys and values of one position: they follow from its token and all before it."""

    position: int
    token_id: int
    history: int


def slot_after(before: Slot | None, token_id: int) -> Slot:
    if before is None:
        return Slot(0, token_id, zlib.crc32(bytes([token_id])))
    history = zlib.crc32(bytes([token_id]), before.history)
    return Slot(before.position + 1, token_id, history)


class FakeModel:
    """Executes steps on a paged cache of slots, and keeps a log of the work."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cache: list[Slot | None] = [None] * (num_blocks * block_size)
        self.computed: dict[str, list[tuple[int, int]]] = {}

    @property
    def num_computed_tokens(self) -> int:
        return sum(end - start for spans in self.computed.values() for start, end in spans)

    def execute(self, step: Step) -> list[Sampled]:
        for item in step.scheduled:
            self._write(item)
        return [self._sample(item) for item in step.scheduled]

    def _write(self, item: ScheduledRequest) -> None:
        request = item.request
        start = request.num_computed_tokens
        end = start + item.num_new_tokens
        token_ids = request.token_ids[: end - item.num_drafts]
        token_ids += request.draft_token_ids[: item.num_drafts]
        assert len(token_ids) == end
        for position in range(start, end):
            before = self.cache[self._place(item, position - 1)] if position else None
            assert position == 0 or before is not None
            self.cache[self._place(item, position)] = slot_after(before, token_ids[position])

    def _sample(self, item: ScheduledRequest) -> Sampled:
        request = item.request
        context = self._read(item)
        scores = [
            prompt_logprob(context[: position + 1], request.token_ids[position + 1])
            for position in item.prompt_logprob_rows
        ]
        token_ids: list[int] = []
        if item.samples:
            drafts = request.draft_token_ids[: item.num_drafts]
            for count in range(item.num_sampled_rows):
                token_ids.append(next_token(context[: request.num_tokens + count]))
                if drafts[count : count + 1] != token_ids[-1:]:
                    break
        # Of the drafts, those that were right need not be computed again.
        start = request.num_computed_tokens
        num_right = max(0, len(token_ids) - 1)
        span = (start, start + item.num_new_tokens - item.num_drafts + num_right)
        self.computed.setdefault(request.request_id, []).append(span)
        return Sampled(tuple(token_ids), prompt_logprobs=tuple(scores))

    def _read(self, item: ScheduledRequest) -> list[int]:
        context = []
        before: Slot | None = None
        for position in range(item.request.num_computed_tokens + item.num_new_tokens):
            slot = self.cache[self._place(item, position)]
            assert slot is not None
            before = slot_after(before, slot.token_id)
            assert slot == before
            context.append(slot.token_id)
        return context

    def _place(self, item: ScheduledRequest, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return item.request.block_ids[block] * self.block_size + offset


class Guesses:
    """Drafts of which each token is right with a given probability; notes what it is told."""

    def __init__(self, max_drafts: int, share_right: float = 0.5, seed: int = 0) -> None:
        self.max_drafts = max_drafts
        self.share_right = share_right
        self.random = random.Random(seed)
        self.observed: list[tuple[int, int]] = []

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        assert limit >= 1
        text = list(token_ids)
        for _ in range(self.random.randint(0, self.max_drafts)):
            is_right = self.random.random() < self.share_right
            text.append(next_token(text) if is_right else self.random.randrange(VOCAB_SIZE))
        return text[len(token_ids) :]  # more than the limit, at times

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafts <= self.max_drafts
        self.observed.append((num_drafts, num_accepted))


class Rig:
    """A scheduler with its fake model, checked before and after each step."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 1_000,
        enable_prefix_caching: bool = True,
        num_speculative_tokens: int = 0,
        make_lookup: Callable[[int], Lookup] = PromptLookup,
        num_lookahead_tokens: int = 0,
    ) -> None:
        self.kv = KVManager(
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
        )
        self.model = FakeModel(num_blocks, block_size)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.num_speculative_tokens = num_speculative_tokens
        self.max_len = min(max_model_len, self.kv.capacity)
        self.scheduler = Scheduler(
            kv=self.kv,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_token_ids=frozenset({EOS}),
            num_speculative_tokens=num_speculative_tokens,
            make_lookup=make_lookup,
            num_lookahead_tokens=num_lookahead_tokens,
        )
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, tuple[FinishReason, int | str | None]] = {}
        self.cached: dict[str, int] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self.finish_steps: dict[str, int] = {}
        self.first_token_steps: dict[str, int] = {}
        self.num_steps = 0

    def step(self) -> Step:
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        assert step.num_tokens <= self.max_num_batched_tokens
        assert self.scheduler.num_running <= self.max_num_seqs
        assert sum(len(item.prompt_logprob_rows) for item in step.scheduled) <= 128
        assert all(item.num_drafts <= self.num_speculative_tokens for item in step.scheduled)
        assert bool(step.scheduled) == (self.scheduler.num_running > 0)
        self.num_steps += 1
        for delta in self.scheduler.commit(step, self.model.execute(step)):
            self._note(delta)
        self.scheduler.check_integrity()
        return step

    def _note(self, delta: TokenDelta) -> None:
        request_id = delta.request_id
        assert request_id not in self.ends, "tokens after the end"
        assert (delta.num_cached_tokens is None) == (request_id in self.cached)
        if delta.num_cached_tokens is not None:
            self.cached[request_id] = delta.num_cached_tokens
        self.tokens.setdefault(request_id, []).extend(delta.token_ids)
        self.prompt_logprobs.setdefault(request_id, []).extend(delta.prompt_logprobs)
        assert delta.token_ids or delta.prompt_logprobs or delta.finish_reason is not None
        if delta.token_ids:
            self.first_token_steps.setdefault(request_id, self.num_steps)
        if delta.finish_reason is not None:
            self.ends[request_id] = (delta.finish_reason, delta.stop_reason)
            self.finish_steps[request_id] = self.num_steps

    def run(self, max_steps: int = 5_000) -> None:
        while self.scheduler.has_unfinished:
            assert self.num_steps < max_steps, "no end"
            self.step()


def make_request(
    request_id: str,
    num_tokens: int,
    params: SamplingParams | None = None,
    *,
    like: str = "",
    num_shared: int = 0,
    num_known: int = 0,
    priority: int = 0,
    cache_salt: str = "",
) -> GenerateRequest:
    """A request with a prompt of its own, whose first `num_shared` tokens are those of `like`.

    It comes with the first `num_known` tokens of its output, as after the loss of a replica.
    """
    shared, own = random.Random(like), random.Random(request_id)
    request = GenerateRequest(
        request_id=request_id,
        prompt_token_ids=tuple(
            (shared if position < num_shared else own).randrange(VOCAB_SIZE)
            for position in range(num_tokens)
        ),
        params=params or SamplingParams(ignore_eos=True),
        priority=priority,
        cache_salt=cache_salt,
    )
    known, _ = oracle(request, num_tokens + num_known)
    return replace(request, output_token_ids=tuple(known))


Answer = tuple[list[int], tuple[FinishReason, int | None]]


def oracle(request: GenerateRequest, max_len: int) -> Answer:
    """What a request gives alone, by definition: no cache, no batch, no blocks.

    All of its output, that which it came with too.
    """
    context, output = list(request.prompt_token_ids), list[int]()
    params = request.params
    while len(output) != params.max_tokens and len(context) < max_len:
        token_id = next_token(context)
        context.append(token_id)
        output.append(token_id)
        if len(output) <= params.min_tokens:
            continue
        if token_id == EOS and not params.ignore_eos:
            return output, (FinishReason.STOP, None)
        if token_id in params.stop_token_ids:
            return output, (FinishReason.STOP, token_id)
    return output, (FinishReason.LENGTH, None)


def oracle_prompt_logprobs(request: GenerateRequest) -> list[TokenLogprobs]:
    """One for each prompt token but the first, if they are wanted and not given out before."""
    prompt = list(request.prompt_token_ids)
    if request.params.prompt_logprobs is None or request.output_token_ids:
        return []
    return [prompt_logprob(prompt[:index], prompt[index]) for index in range(1, len(prompt))]


def count_restarts(spans: list[tuple[int, int]], block_size: int) -> int:
    """Spans continue one another, or restart behind full blocks that are in the cache.

    Those blocks may reach beyond what it computed: while it waited, another one may have computed
    the same content. That it is the same is for `FakeModel` to notice.
    """
    num_restarts, end = 0, spans[0][0]
    for start, stop in spans:
        assert start == end or start % block_size == 0
        num_restarts += start != end
        end = stop
    return num_restarts
