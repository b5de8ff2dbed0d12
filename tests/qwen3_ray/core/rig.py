"""A scheduler with a fake model whose next token is a hash of what its cache holds.

The model writes every computed token into its block and slot, and samples from what it reads back
through the block ids. So a block that is lost, shared or reused too early, a position left out or
computed twice, or a prompt recomputed wrongly, changes tokens.
"""

import random
import zlib
from itertools import pairwise

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.sampling_params import SamplingParams

VOCAB_SIZE = 50
EOS = 7
Slot = tuple[int, int]


def next_token(context: list[int]) -> int:
    return zlib.crc32(bytes(context)) % VOCAB_SIZE


class FakeModel:
    """Executes steps on a paged cache of (position, token id), and keeps a log of the work."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cache: list[list[Slot]] = [[(-1, -1)] * block_size for _ in range(num_blocks)]
        self.computed: dict[str, list[tuple[int, int]]] = {}

    def execute(self, step: Step) -> list[Sampled]:
        for item in step.scheduled:
            self._write(item)
        return [
            Sampled((next_token(self._read(item)),)) if item.samples else Sampled()
            for item in step.scheduled
        ]

    def _write(self, item: ScheduledRequest) -> None:
        request = item.request
        start = request.num_computed_tokens
        end = start + item.num_new_tokens
        self.computed.setdefault(request.request_id, []).append((start, end))
        for position in range(start, end):
            block_id = request.block_ids[position // self.block_size]
            slot = (position, request.token_ids[position])
            self.cache[block_id][position % self.block_size] = slot

    def _read(self, item: ScheduledRequest) -> list[int]:
        num_tokens = item.request.num_tokens
        slots = [slot for block_id in item.request.block_ids for slot in self.cache[block_id]]
        assert [position for position, _ in slots[:num_tokens]] == list(range(num_tokens))
        return [token_id for _, token_id in slots[:num_tokens]]


class Rig:
    """A scheduler with its fake model, checked after each step."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 1_000,
    ) -> None:
        self.kv = KVManager(num_blocks=num_blocks, block_size=block_size)
        self.model = FakeModel(num_blocks, block_size)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.max_len = min(max_model_len, self.kv.capacity)
        self.scheduler = Scheduler(
            kv=self.kv,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_token_ids=frozenset({EOS}),
        )
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, tuple[FinishReason, int | str | None]] = {}
        self.finish_steps: dict[str, int] = {}
        self.num_steps = 0

    def step(self) -> Step:
        step = self.scheduler.schedule()
        assert step.num_tokens <= self.max_num_batched_tokens
        assert self.scheduler.num_running <= self.max_num_seqs
        assert bool(step.scheduled) == self.scheduler.has_unfinished
        self.num_steps += 1
        for delta in self.scheduler.commit(step, self.model.execute(step)):
            self._note(delta)
        self.scheduler.check_integrity()
        return step

    def _note(self, delta: TokenDelta) -> None:
        assert delta.request_id not in self.ends, "tokens after the end"
        self.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            self.ends[delta.request_id] = (delta.finish_reason, delta.stop_reason)
            self.finish_steps[delta.request_id] = self.num_steps

    def run(self, max_steps: int = 5_000) -> None:
        while self.scheduler.has_unfinished:
            assert self.num_steps < max_steps, "no end"
            self.step()


def make_request(
    request_id: str, num_tokens: int, params: SamplingParams | None = None
) -> GenerateRequest:
    rng = random.Random(request_id)
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=tuple(rng.randrange(VOCAB_SIZE) for _ in range(num_tokens)),
        params=params or SamplingParams(ignore_eos=True),
    )


def oracle(
    request: GenerateRequest, max_len: int
) -> tuple[list[int], tuple[FinishReason, int | None]]:
    """What a request gives alone, by definition: no cache, no batch, no blocks."""
    context, output = list(request.prompt_token_ids), list[int]()
    params = request.params
    while True:
        token_id = next_token(context)
        context.append(token_id)
        output.append(token_id)
        if token_id == EOS and not params.ignore_eos:
            return output, (FinishReason.STOP, None)
        if token_id in params.stop_token_ids:
            return output, (FinishReason.STOP, token_id)
        if len(output) == params.max_tokens or len(context) == max_len:
            return output, (FinishReason.LENGTH, None)


def check_contiguous(spans: list[tuple[int, int]]) -> int:
    """Spans continue one another, or restart at 0. Returns the number of restarts."""
    assert spans[0][0] == 0
    num_restarts = 0
    for (_, end), (start, _) in pairwise(spans):
        assert start in {0, end}
        num_restarts += start == 0
    return num_restarts
