"""A real executor under many engines, and what each request gets by itself as the truth."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.executor import Executor
from qwen3_ray.engine.rank import build_engine, serve_rank
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta, TokenLogprobs
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import engine_config

MAX_MODEL_LEN = 256
ALL = 2_048
"""A token budget that takes every prompt at once."""


@dataclass(frozen=True)
class Spec:
    """A request without its id."""

    prompt: tuple[int, ...]
    params: SamplingParams

    def request(self, request_id: str, output_token_ids: Sequence[int] = ()) -> GenerateRequest:
        return GenerateRequest(
            request_id=request_id,
            prompt_token_ids=self.prompt,
            params=self.params,
            output_token_ids=tuple(output_token_ids),
        )


@dataclass(frozen=True)
class Answer:
    """All that a request got; floats compare by value, and none may be NaN."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def extended(self, delta: TokenDelta) -> Answer:
        assert self.finish_reason is None, "a delta after the end"
        assert delta.error is None, delta.error
        return Answer(
            self.token_ids + delta.token_ids,
            self.logprobs + delta.logprobs,
            self.prompt_logprobs + delta.prompt_logprobs,
            delta.finish_reason,
            delta.stop_reason,
        )

    def after(self, num_tokens: int) -> Answer:
        """What is left to say where `num_tokens` output tokens were made before."""
        return replace(
            self,
            token_ids=self.token_ids[num_tokens:],
            logprobs=self.logprobs[num_tokens:],
            prompt_logprobs=() if num_tokens else self.prompt_logprobs,
        )


@dataclass(frozen=True)
class Arrival:
    """A request that comes before step `at_step`, and is aborted before step `abort_at`."""

    request: GenerateRequest
    at_step: int = 0
    abort_at: int | None = None


@dataclass(frozen=True)
class Schedule:
    """What a request must not be able to tell from its answer."""

    max_num_batched_tokens: int = ALL
    max_num_seqs: int = 64
    num_blocks: int | None = None
    """None for all that the executor has."""
    enable_prefix_caching: bool = True
    num_speculative_tokens: int = 4


ALONE = Schedule(max_num_seqs=1, enable_prefix_caching=False, num_speculative_tokens=0)


class FewerBlocks:
    """An executor that lets its engine use only some of the blocks."""

    def __init__(self, executor: Executor, num_blocks: int) -> None:
        assert num_blocks <= executor.num_blocks
        self.num_blocks = num_blocks
        self.block_size = executor.block_size
        self.idle, self.close = executor.idle, executor.close
        self._executor = executor

    def execute(self, step: Step) -> list[Sampled]:
        return self._executor.execute(step)


class Rig:
    """Engines over one executor. Each is new: nothing but stale blocks is left of the last."""

    def __init__(self, executor: Executor, info: EngineInfo) -> None:
        self.executor = executor
        self.info = info
        self._alone: dict[Spec, Answer] = {}

    def engine(self, schedule: Schedule) -> Engine:
        num_blocks = schedule.num_blocks or self.executor.num_blocks
        return Engine(
            FewerBlocks(self.executor, num_blocks),
            self.info,
            max_num_seqs=schedule.max_num_seqs,
            max_num_batched_tokens=schedule.max_num_batched_tokens,
            enable_prefix_caching=schedule.enable_prefix_caching,
            num_speculative_tokens=schedule.num_speculative_tokens,
        )

    def run(
        self, schedule: Schedule, arrivals: Sequence[Arrival]
    ) -> tuple[dict[str, Answer], EngineStats]:
        """Answers by request id, as far as they came, once nothing is left to do."""
        engine = self.engine(schedule)
        answers = {arrival.request.request_id: Answer() for arrival in arrivals}
        last_step = max(max(a.at_step, a.abort_at or 0) for a in arrivals)
        step = 0
        while step <= last_step or engine.has_unfinished:
            for arrival in arrivals:
                if arrival.at_step == step:
                    engine.add_request(arrival.request)
                if arrival.abort_at == step:
                    engine.abort_request(arrival.request.request_id)
            for delta in engine.step():
                answers[delta.request_id] = answers[delta.request_id].extended(delta)
            step += 1
        engine.check_integrity()
        return answers, engine.stats()

    def alone(self, spec: Spec) -> Answer:
        """What `spec` gets with the engine to itself, its prompt in one piece."""
        if spec not in self._alone:
            answers, _ = self.run(ALONE, [Arrival(spec.request("alone"))])
            self._alone[spec] = answers["alone"]
        return self._alone[spec]


@contextmanager
def running(model_dir: Path, **changes: object) -> Iterator[Rig]:
    """A rig over a real engine's executor; its ranks from 1 on are threads of this process."""
    defaults: dict[str, object] = {"max_model_len": MAX_MODEL_LEN, "num_threads": 1}
    config = engine_config(model_dir, **defaults | changes)
    with tempfile.TemporaryDirectory() as directory:
        rendezvous_dir = Path(directory)
        others = [
            threading.Thread(
                target=partial(serve_rank, config, rank, rendezvous_dir=rendezvous_dir)
            )
            for rank in range(1, config.tensor_parallel_size)
        ]
        for thread in others:
            thread.start()
        engine = build_engine(config, rendezvous_dir=rendezvous_dir)
        try:
            yield Rig(engine._executor, engine.info)
        finally:
            engine.close()
            for thread in others:
                thread.join()
