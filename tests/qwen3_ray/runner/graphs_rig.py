"""An engine with graphs over a fake model, and what it must answer."""

from __future__ import annotations

import numpy as np
import torch

from qwen3_ray.attention.base import AttentionMetadata
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.distributed.control import StepArrays, StepControl
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.engine.run_ahead import NUM_LOOKAHEAD_TOKENS
from qwen3_ray.engine.stats import EngineInfo
from qwen3_ray.request import GenerateRequest
from qwen3_ray.runner.cuda_graphs import GraphLimits, GraphRunner, StepKernels
from qwen3_ray.runner.device_rows import device_rows
from qwen3_ray.runner.device_stream import DeviceStream, InlineStream
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR, ROW, packed_row
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.fake_device import (
    CPU,
    EOS,
    VOCAB_SIZE,
    FakeModel,
    PlainKernels,
    fake_choose,
    fake_logits,
    mix,
)


class _Runner(ModelRunner):
    def __init__(self, model: FakeModel, block_size: int, stream: DeviceStream) -> None:
        self._fake, self._size, self._stream = model, block_size, stream
        self.num_steps = 0

    def execute(self, arrays: StepArrays) -> torch.Tensor:
        """See `ModelRunner`; what was queued comes first."""
        self._stream.mark()()
        self.num_steps += 1
        metadata = AttentionMetadata(
            query_start_loc=torch.from_numpy(arrays.query_start_loc),
            seq_lens=torch.from_numpy(arrays.seq_lens),
            block_tables=torch.from_numpy(arrays.block_tables),
            slot_mapping=torch.from_numpy(arrays.slot_mapping),
            block_size=self._size,
        )
        ids, positions = torch.from_numpy(arrays.input_ids), torch.from_numpy(arrays.positions)
        indices = torch.from_numpy(arrays.logits_indices)
        return self._fake.forward(ids, positions, metadata, indices)


class _Sampler(Sampler):
    def __init__(self) -> None:
        pass

    def sample(self, logits: torch.Tensor, step: Step) -> list[Sampled]:
        """See `Sampler`; constraints change nothing."""
        results, row = [], 0
        for item in step.scheduled:
            tokens: list[int] = []
            for count in range(item.num_sampled_rows):
                tokens.append(
                    sample_one(logits[row], item.request, item.request.num_tokens + count)
                )
                row += 1
            for index, draft in enumerate(item.request.draft_token_ids[: item.num_drafts]):
                if tokens[index] != draft:
                    tokens = tokens[: index + 1]
                    break
            is_nan = NUMERICAL_ERROR in tokens[:1]
            results.append(Sampled(problem="not finite") if is_nan else Sampled(tuple(tokens)))
        return results


def sample_one(logits: torch.Tensor, request: RequestState, position: int) -> int:
    rows = np.frombuffer(bytearray(packed_row(request)), ROW)
    rows["position"] = position
    out = torch.zeros(1, dtype=torch.int32)
    fake_choose(logits[None], device_rows(rows, CPU), VOCAB_SIZE, out, may_cut=True)
    return int(out)


def oracle(request: GenerateRequest, max_len: int) -> list[int]:
    """What a request gets alone, by definition; -1 stands for logits that are not finite."""
    state = RequestState.of(request, 0)
    tokens, history = state.token_ids, 0
    for token_id in tokens:
        history = mix(history, token_id)
    while len(tokens) < max_len:
        if state.num_output_tokens == request.params.max_tokens:
            break
        last_two = (tokens[-2], tokens[-1]) if len(tokens) > 1 else (-1, -1)
        token_id = sample_one(fake_logits(history, last_two), state, len(tokens))
        tokens.append(token_id)
        if token_id < 0 or (token_id == EOS and not request.params.ignore_eos):
            break
        history = mix(history, token_id)
    return tokens[state.prompt_len :]


def limits(*, max_num_seqs: int = 6, max_model_len: int = 24, block_size: int = 4) -> GraphLimits:
    return GraphLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16,
        max_model_len=max_model_len,
        block_size=block_size,
        num_valid_token_ids=VOCAB_SIZE,
    )


class GraphEngine:
    """An engine over the fake model, with graphs and steps that run ahead."""

    def __init__(
        self,
        *,
        num_blocks: int = 40,
        max_num_seqs: int = 6,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 24,
        block_size: int = 4,
        num_speculative_tokens: int = 0,
        stream: DeviceStream | None = None,
        kernels: StepKernels | None = None,
        control: StepControl | None = None,
    ) -> None:
        stream = stream or InlineStream()
        control = control or StepControl(None, 0, 1)
        self.model = FakeModel(num_blocks, block_size)
        self.graphs = GraphRunner(
            self.model.forward,
            fake_choose,
            kernels or PlainKernels(),
            limits(max_num_seqs=max_num_seqs, max_model_len=max_model_len, block_size=block_size),
            device=CPU,
            stream=stream,
            tell=control.send_order,
        )
        self.graphs.warm_up()
        self.runner = _Runner(self.model, block_size, stream)
        self.executor = GroupExecutor(
            control=control,
            runner=self.runner,
            sampler=_Sampler(),
            num_blocks=num_blocks,
            block_size=block_size,
            graphs=self.graphs,
        )
        info = EngineInfo(
            model_name="fake",
            numerics_fingerprint="fake",
            exact=True,
            block_size=block_size,
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            tensor_parallel_size=1,
            eos_token_ids=frozenset({EOS}),
        )
        self.engine = Engine(
            self.executor,
            info,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            num_speculative_tokens=num_speculative_tokens,
            num_lookahead_tokens=NUM_LOOKAHEAD_TOKENS,
        )
        self.tokens: dict[str, list[int]] = {}

    def step(self) -> None:
        for delta in self.engine.step():
            tokens = self.tokens.setdefault(delta.request_id, [])
            tokens.extend(delta.token_ids)
            if delta.error is not None:
                tokens.append(NUMERICAL_ERROR)
        self.engine.check_integrity()

    def run(self) -> None:
        while self.engine.has_unfinished:
            self.step()
        assert self.engine.stats().kv_cache_usage == 0


def make_request(
    request_id: str, num_tokens: int, params: SamplingParams, *, like: int = 0
) -> GenerateRequest:
    """Prompts of the same `like` begin alike."""
    prompt = tuple(mix(like, position) % VOCAB_SIZE for position in range(num_tokens))
    return GenerateRequest(request_id=request_id, prompt_token_ids=prompt, params=params)


GREEDY = SamplingParams(temperature=0, seed=0, ignore_eos=True, max_tokens=1_000)
