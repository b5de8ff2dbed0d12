"""Steps on a tensor-parallel group of ranks; of one rank it is the same code."""

from __future__ import annotations

from contextlib import suppress

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.distributed.control import Kind, StepControl, group_errors
from qwen3_ray.engine.run_ahead import Graphs, RunAhead
from qwen3_ray.errors import EngineError
from qwen3_ray.runner.input_batch import build
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.sampling_params import SamplingParams

_WARM_UP_PARAMS = (
    SamplingParams(seed=0, top_k=2),
    SamplingParams(
        seed=0,
        top_k=2,
        top_p=0.9,
        logprobs=1,
        allowed_token_ids=[0, 1],
        stop_token_ids=[1],
        min_tokens=1,
        logit_bias={0: 1.0},
        presence_penalty=0.1,
    ),
)
"""All that a sampler may have to do: masks, bans, biases, penalties, cuts, logprobs."""


class GroupExecutor:
    """Rank 0 of the group: an `Executor` that lays steps out, leads the ranks, and samples.

    With `graphs`, which all of its ranks have or none, steps run ahead where they can.
    """

    def __init__(
        self,
        *,
        control: StepControl,
        runner: ModelRunner,
        sampler: Sampler,
        num_blocks: int,
        block_size: int,
        graphs: Graphs | None = None,
    ) -> None:
        self._control = control
        self._runner = runner
        self._sampler = sampler
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._run_ahead: RunAhead | None = None
        if graphs is not None:
            self._run_ahead = RunAhead(graphs, self._compute, block_size=block_size)

    @property
    def num_blocks(self) -> int:
        """KV blocks of each rank."""
        return self._num_blocks

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._block_size

    def execute(self, step: Step) -> list[Sampled]:
        """See `Executor`."""
        if self._run_ahead is None:
            return self._compute(step)
        with group_errors(f"a step of {step.num_tokens} tokens failed"):
            return self._run_ahead.execute(step)

    def _compute(self, step: Step) -> list[Sampled]:
        arrays = build(step, self._block_size)
        self._control.send(Kind.STEP, arrays)
        with group_errors(f"a step of {step.num_tokens} tokens failed"):
            logits = self._runner.execute(arrays)
        if logits is None:
            return [Sampled()] * len(step.scheduled)
        return self._sampler.sample(logits, step)

    def idle(self) -> None:
        """See `Executor`."""
        self._control.send(Kind.NOOP)

    def close(self) -> None:
        """See `Executor`."""
        # Graphs go before the group, which ends no sooner: NCCL waits for those with its kernels.
        run_ahead, self._run_ahead = self._run_ahead, None
        with suppress(EngineError, RuntimeError):  # the others may be gone
            self._control.send(Kind.STOP)
            if run_ahead is not None:
                run_ahead.finish()

    def warm_up(self) -> None:
        """Compile every kernel before the first request: two prefills, then a decode of both.

        Both write to block 0, which nobody owns yet.
        """
        requests = [_warm_up_request(params) for params in _WARM_UP_PARAMS]
        for num_new_tokens in (2, 1):
            scheduled = tuple(ScheduledRequest(request, num_new_tokens) for request in requests)
            results = self._compute(Step(scheduled))
            for request, result in zip(requests, results, strict=True):
                request.num_computed_tokens += num_new_tokens
                request.token_ids.append(result.token_ids[0] if result.token_ids else 0)


def _warm_up_request(params: SamplingParams) -> RequestState:
    # Enough entries for the smallest of blocks; a position's block is always block 0.
    return RequestState("warm-up", [0, 0], 2, params, block_ids=[0, 0, 0])
