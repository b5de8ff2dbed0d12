"""For tests, ours and yours: an engine without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.stats import EngineInfo
from qwen3_ray.errors import EngineError
from qwen3_ray.request import TokenLogprobs


def fake_next_token(token_ids: Sequence[int], seed: int, vocab_size: int, choice: int = 0) -> int:
    """The token that `FakeExecutor` gives after `token_ids`: a hash of all arguments."""
    return _hash(f"{seed}:{choice}:{','.join(map(str, token_ids))}") % vocab_size


def fake_logprobs(token_ids: Sequence[int], token_id: int, num_top: int) -> TokenLogprobs:
    """How likely `FakeExecutor` says that `token_id` was after `token_ids`: the likeliest one."""
    logprob = -1.0 - _hash(f"{token_id}:{','.join(map(str, token_ids))}") % 64 / 8
    top = tuple((token_id + index, logprob - index) for index in range(num_top))
    return TokenLogprobs(token_id=token_id, logprob=logprob, rank=1, top=top)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class FakeExecutor:
    """An `Executor` without a model, that notices wrong bookkeeping.

    What it writes into a slot of its "KV cache" follows, as keys and values do, from the token
    and from all slots before it. Before it samples it reads a request's slots back through the
    blocks: one that was freed too early, shared wrongly or not recomputed fails the step.

    Args:
        fail_at_step: number of the step, from 0 on, at which it raises EngineError.
        nan_request_ids: requests whose logits are not finite.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        vocab_size: int = 1000,
        fail_at_step: int | None = None,
        nan_request_ids: Collection[str] = (),
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.fail_at_step = fail_at_step
        self.nan_request_ids = nan_request_ids
        self.steps: list[dict[str, int]] = []
        """For each step, how many tokens of which request it computed."""
        self.num_idles = 0
        self.is_closed = False
        self._slots = [0] * (num_blocks * block_size)

    def execute(self, step: Step) -> list[Sampled]:
        """See `Executor`."""
        if len(self.steps) == self.fail_at_step:
            raise EngineError("the fake executor fails, as it was told")
        self.steps.append({item.request.request_id: item.num_new_tokens for item in step.scheduled})
        for item in step.scheduled:
            self._write(item)
        return [self._sample(item) for item in step.scheduled]

    def idle(self) -> None:
        """See `Executor`."""
        self.num_idles += 1

    def close(self) -> None:
        """See `Executor`."""
        self.is_closed = True

    def _write(self, item: ScheduledRequest) -> None:
        first = item.request.num_computed_tokens
        token_ids = _with_drafts(item)
        for position in range(first, first + item.num_new_tokens):
            before = self._slots[self._slot(item, position - 1)] if position > 0 else 0
            self._slots[self._slot(item, position)] = hash((before, token_ids[position]))

    def _sample(self, item: ScheduledRequest) -> Sampled:
        request, params = item.request, item.request.params
        if request.request_id in self.nan_request_ids:
            return Sampled(problem="numerical error, as it was told")
        token_ids = _with_drafts(item)
        self._check_slots(item, token_ids)
        sampled: list[int] = []
        for count in range(item.num_sampled_rows):
            known = token_ids[: request.num_tokens + count]
            sampled.append(
                fake_next_token(known, params.seed or 0, self.vocab_size, request.choice)
            )
            if request.draft_token_ids[count : count + 1] != sampled[-1:]:
                break
        known = request.token_ids + sampled
        return Sampled(
            tuple(sampled),
            _logprobs(known, range(request.num_tokens, len(known)), params.logprobs),
            _logprobs(known, [row + 1 for row in item.prompt_logprob_rows], params.prompt_logprobs),
        )

    def _check_slots(self, item: ScheduledRequest, token_ids: Sequence[int]) -> None:
        expected = 0
        for position in range(item.request.num_computed_tokens + item.num_new_tokens):
            expected = hash((expected, token_ids[position]))
            if self._slots[self._slot(item, position)] != expected:
                raise EngineError(
                    f"the KV cache does not hold position {position} of {item.request.request_id}"
                )

    def _slot(self, item: ScheduledRequest, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return item.request.block_ids[block] * self.block_size + offset


def _with_drafts(item: ScheduledRequest) -> list[int]:
    return item.request.token_ids + item.request.draft_token_ids[: item.num_drafts]


def _logprobs(
    token_ids: Sequence[int], positions: Iterable[int], num_top: int | None
) -> tuple[TokenLogprobs, ...]:
    if num_top is None:
        return ()
    return tuple(
        fake_logprobs(token_ids[:position], token_ids[position], num_top) for position in positions
    )


def make_fake_engine(
    executor: FakeExecutor | None = None,
    *,
    max_model_len: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    eos_token_ids: Collection[int] = (),
    enable_prefix_caching: bool = True,
    num_speculative_tokens: int = 0,
) -> Engine:
    """An engine over a `FakeExecutor`."""
    executor = executor or FakeExecutor()
    info = EngineInfo(
        model_name="fake",
        numerics_fingerprint="fake",
        exact=True,
        block_size=executor.block_size,
        max_model_len=max_model_len,
        vocab_size=executor.vocab_size,
        tensor_parallel_size=1,
        eos_token_ids=frozenset(eos_token_ids),
    )
    return Engine(
        executor,
        info,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        num_speculative_tokens=num_speculative_tokens,
    )
