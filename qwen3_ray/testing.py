"""For tests, ours and yours: tiny checkpoints and an engine without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.stats import EngineInfo
from qwen3_ray.errors import EngineError


def fake_next_token(token_ids: Sequence[int], seed: int, vocab_size: int) -> int:
    """The token that `FakeExecutor` gives after `token_ids`: a hash of them and the seed."""
    text = f"{seed}:{','.join(map(str, token_ids))}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocab_size


class FakeExecutor:
    """An `Executor` without a model, that notices wrong bookkeeping.

    It writes token ids into the slots of its "KV cache", reads a request's context back through
    its blocks, and gives `fake_next_token` of what it read: a block that is freed too early,
    shared or not recomputed changes the output.

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
        self._slots = [-1] * (num_blocks * block_size)

    def execute(self, step: Step) -> list[Sampled]:
        """See `Executor`."""
        if len(self.steps) == self.fail_at_step:
            raise EngineError("the fake executor fails, as it was told")
        self.steps.append({item.request.request_id: item.num_new_tokens for item in step.scheduled})
        for item in step.scheduled:
            self._write(item)
        return [
            self._sample(item.request) if item.samples else Sampled() for item in step.scheduled
        ]

    def idle(self) -> None:
        """See `Executor`."""
        self.num_idles += 1

    def close(self) -> None:
        """See `Executor`."""
        self.is_closed = True

    def _write(self, item: ScheduledRequest) -> None:
        request = item.request
        first = request.num_computed_tokens
        for position in range(first, first + item.num_new_tokens):
            self._slots[self._slot(request, position)] = request.token_ids[position]

    def _sample(self, request: RequestState) -> Sampled:
        if request.request_id in self.nan_request_ids:
            return Sampled(problem="numerical error, as it was told")
        context = [
            self._slots[self._slot(request, position)] for position in range(request.num_tokens)
        ]
        return Sampled((fake_next_token(context, request.params.seed or 0, self.vocab_size),))

    def _slot(self, request: RequestState, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return request.block_ids[block] * self.block_size + offset


def make_fake_engine(
    executor: FakeExecutor | None = None,
    *,
    max_model_len: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    eos_token_ids: Collection[int] = (),
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
    )
