"""One engine: requests in, token deltas out, a step at a time. Knows no text, thread or clock."""

from __future__ import annotations

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.core.step import ScheduledRequest
from qwen3_ray.engine.executor import Executor
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.errors import RequestError
from qwen3_ray.request import GenerateRequest, TokenDelta
from qwen3_ray.text.grammar import GrammarCompiler


class Engine:
    """Scheduler and executor put together. One thread calls all methods (`EngineLoop`'s)."""

    def __init__(
        self,
        executor: Executor,
        info: EngineInfo,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool = True,
        num_speculative_tokens: int = 0,
        num_lookahead_tokens: int = 0,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """See `Scheduler`. `grammars` are those that the executor follows, None if it cannot."""
        self.info = info
        self.grammars = grammars
        self._executor = executor
        self._kv = KVManager(
            num_blocks=executor.num_blocks,
            block_size=executor.block_size,
            enable_prefix_caching=enable_prefix_caching,
        )
        self._scheduler = Scheduler(
            kv=self._kv,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=info.max_model_len,
            eos_token_ids=info.eos_token_ids,
            num_speculative_tokens=num_speculative_tokens,
            num_lookahead_tokens=num_lookahead_tokens,
        )
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def has_unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return self._scheduler.has_unfinished

    def add_request(self, request: GenerateRequest) -> None:
        """Queue a request.

        Raises:
            RequestError: it cannot be served: its id is in use, its prompt does not fit, or its
                seed is not drawn.
        """
        if request.params.seed is None:
            raise RequestError("seed", "must be drawn before the engine takes the request")
        self._scheduler.add(request)

    def abort_request(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False if it is not known (any more)."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[TokenDelta]:
        """Compute one step; a delta for each request that got something or ended.

        Raises:
            EngineError: the executor failed; the engine is of no more use.
        """
        step = self._scheduler.schedule()
        sampled = self._executor.execute(step) if step.scheduled else []
        self._num_steps += bool(step.scheduled)
        self._num_prompt_tokens += sum(_num_prompt_tokens(item) for item in step.scheduled)
        deltas = self._scheduler.commit(step, sampled)
        self._num_generated_tokens += sum(len(delta.token_ids) for delta in deltas)
        return deltas

    def reset_prefix_cache(self) -> None:
        """Let no request find what was computed before; running ones keep what they have."""
        self._scheduler.reset_prefix_cache()

    def idle(self) -> None:
        """Keep the other ranks waiting in good faith.

        Raises:
            EngineError: a rank is gone.
        """
        self._executor.idle()

    def check_integrity(self) -> None:
        """Raise EngineError if a block is lost, shared or held by nobody."""
        self._scheduler.check_integrity()

    def stats(self) -> EngineStats:
        """Load and totals."""
        scheduler, totals = self._scheduler, self._scheduler.totals
        return EngineStats(
            num_waiting_tokens=scheduler.num_waiting_tokens,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_cache_usage=self._kv.usage,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=totals.num_preemptions,
            num_prefix_queries=totals.num_prefix_queries,
            num_prefix_hits=totals.num_prefix_hits,
            num_draft_tokens=totals.num_draft_tokens,
            num_accepted_tokens=totals.num_accepted_tokens,
            numerics_fingerprint=self.info.numerics_fingerprint,
        )

    def close(self) -> None:
        """Let the executor's ranks end."""
        self._executor.close()
        if self.grammars is not None:
            self.grammars.close()


def _num_prompt_tokens(item: ScheduledRequest) -> int:
    """How many of the tokens that a step computes for one request are of its prompt."""
    request = item.request
    return min(item.num_new_tokens, max(0, request.prompt_len - request.num_computed_tokens))
