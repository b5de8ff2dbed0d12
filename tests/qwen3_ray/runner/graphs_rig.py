"""Graphs over a fake model whose next token follows from what it reads back through block tables.

A slot keeps the token and a hash of all tokens up to it. A row whose context is not what its
sequence's ids make it - a stale id, a wrong slot, a block of someone else - gets other logits.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Sequence

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
from qwen3_ray.runner.device_rows import DeviceRows, device_rows
from qwen3_ray.runner.device_stream import DeviceStream, InlineStream, Work
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampled_ring import SampledRing
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR, ROW, packed_row
from qwen3_ray.runner.step_buffers import StepBuffers
from qwen3_ray.sampling_params import SamplingParams

CPU = torch.device("cpu")
VOCAB_SIZE = 23
EOS = 7
NAN_TOKEN = 22
"""A context that ends with two of them has no finite logits."""
_MODULUS = 1_000_003


def mix(*values: int) -> int:
    digest = hashlib.blake2b(struct.pack(f"{len(values)}q", *values), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _MODULUS


def fake_logits(history: int, last_two: tuple[int, int]) -> torch.Tensor:
    if last_two == (NAN_TOKEN, NAN_TOKEN):
        return torch.full((VOCAB_SIZE,), torch.nan)
    return torch.tensor([mix(history, token_id) / _MODULUS for token_id in range(VOCAB_SIZE)])


def fake_choose(
    logits: torch.Tensor,
    rows: DeviceRows,
    num_valid_token_ids: int,
    out: torch.Tensor,
    *,
    may_cut: bool,
) -> None:
    """Stands in for `triton_choice.choose`: any function of the same arguments will do."""
    for row, values in enumerate(logits[:, :num_valid_token_ids].double()):
        scores = values.clone()
        if rows.temperature[row] > 0 and (rows.top_k[row] != 1 or not may_cut):
            key = (int(rows.seed[row]), int(rows.position[row]), int(rows.choice[row]))
            noise = [mix(*key, token_id) / _MODULUS for token_id in range(num_valid_token_ids)]
            scores += torch.tensor(noise, dtype=torch.float64)
        best = int(scores.argmax())
        out[row] = best if values.isfinite().all() else NUMERICAL_ERROR


class PlainKernels:
    """What `triton_advance` does, by definition, in plain Python."""

    def feed(self, buffers: StepBuffers, ring: SampledRing, num_seqs: int) -> None:
        fields, ids = buffers.device, ring.ids.view(-1)
        for row in range(num_seqs):
            if fields.sources[row] >= 0:
                fields.input_ids[row] = max(0, int(ids[fields.sources[row]]))
            first = int(fields.first_columns[row])
            if first >= 0:
                start, count = int(fields.starts[row]), int(fields.num_columns[row])
                columns = slice(first, first + count)
                buffers.block_tables[row, columns] = fields.blocks[start : start + count]
                buffers.num_blocks[row] = first + count

    def advance(
        self, buffers: StepBuffers, ring: SampledRing, num_seqs: int, *, decodes: bool
    ) -> None:
        fields, size = buffers.device, buffers.block_size
        ring.ids[int(ring.turn) % len(ring.ids), :num_seqs] = ring.sampled[:num_seqs]
        ring.turn += 1
        for row in range(num_seqs if decodes else 0):
            position = int(fields.seq_lens[row])
            column, offset = divmod(position, size)
            fields.slot_mapping[row] = -1
            if position == 0:
                continue
            if column < buffers.num_blocks[row]:
                fields.slot_mapping[row] = buffers.block_tables[row, column] * size + offset
            fields.input_ids[row] = max(0, int(ring.sampled[row]))
            fields.positions[row] = position
            fields.seq_lens[row] = position + 1


class FakeModel:
    """A forward pass, and the cache that it writes to."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.tokens = [-1] * (num_blocks * block_size)
        self.histories = [-1] * (num_blocks * block_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        logits_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `cuda_graphs.Forward`."""
        logits = torch.zeros(len(input_ids), VOCAB_SIZE)
        starts, size = metadata.query_start_loc.tolist(), metadata.block_size
        for index, seq_len in enumerate(metadata.seq_lens.tolist()):
            table = metadata.block_tables[index].tolist()
            slots = [table[p // size] * size + p % size for p in range(seq_len)]
            rows = range(starts[index], starts[index + 1])
            for row, position in zip(rows, range(seq_len - len(rows), seq_len), strict=True):
                assert int(positions[row]) == position
                slot = int(metadata.slot_mapping[row])
                assert slot == slots[position]
                before = self.histories[slots[position - 1]] if position else 0
                self.tokens[slot] = int(input_ids[row])
                self.histories[slot] = mix(before, self.tokens[slot])
                logits[row] = self._logits(slots[: position + 1])
        return logits if logits_indices is None else logits[logits_indices.long()]

    def _logits(self, slots: Sequence[int]) -> torch.Tensor:
        history = 0
        for slot in slots:
            history = mix(history, self.tokens[slot])
            if history != self.histories[slot]:
                history = -1  # not the context of one sequence
        tokens = [self.tokens[slot] for slot in slots[-2:]]
        return fake_logits(history, (tokens[0], tokens[-1]) if len(tokens) == 2 else (-1, -1))


class LazyStream:
    """Does nothing before it must, as a device does that is far behind."""

    def __init__(self) -> None:
        self._queue: deque[Work] = deque()
        self._num_done = 0

    def run(self, work: Work) -> None:
        """See `DeviceStream`."""
        self._queue.append(work)

    def capture(self, work: Work) -> Work:
        """See `DeviceStream`."""
        return work

    def mark(self) -> Work:
        """See `DeviceStream`."""
        end = self._num_done + len(self._queue)
        return lambda: self._run_until(end)

    def _run_until(self, end: int) -> None:
        while self._num_done < end:
            self._num_done += 1
            self._queue.popleft()()


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
    ) -> None:
        stream = stream or InlineStream()
        self.model = FakeModel(num_blocks, block_size)
        self.graphs = GraphRunner(
            self.model.forward,
            fake_choose,
            kernels or PlainKernels(),
            limits(max_num_seqs=max_num_seqs, max_model_len=max_model_len, block_size=block_size),
            device=CPU,
            stream=stream,
        )
        self.graphs.warm_up()
        self.runner = _Runner(self.model, block_size, stream)
        self.executor = GroupExecutor(
            control=StepControl(None, 0, 1),
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
