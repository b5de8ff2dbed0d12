"""Forward passes of fixed shapes, each captured once: from embedding to sampled ids in one replay.

A step runs in the smallest shape that holds it. What is beyond it is padding: rows of no sequence
(slot -1), and sequences of no rows (`seq_len` 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from qwen3_ray.attention.base import AttentionMetadata
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest
from qwen3_ray.distributed.control import GraphOrder
from qwen3_ray.runner.constraints import has_constraints
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.device_step import DecodeRow, DeviceStep, place_prompts
from qwen3_ray.runner.device_stream import DeviceStream, Work
from qwen3_ray.runner.sampled_ring import Launch, SampledRing
from qwen3_ray.runner.sampling_rows import packed_row
from qwen3_ray.runner.step_buffers import StepBuffers

PROMPT_TOKENS = (128, 256, 512, 1_024, 2_048)
"""Sizes of steps that compute prompts. Larger ones take so long that launching hides behind."""
_MAX_PROMPT_SEQS = 64
_FEW_DECODES = (1, 2, 4)
_DECODE_STRIDE = 8
_NOTHING = np.empty(0, np.int32)


class Forward(Protocol):
    """A forward pass that a stream can capture; `ModelRunner.forward` is one."""

    def __call__(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        logits_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [num_logits, shard_size] of the rows named, or of all."""


class Choose(Protocol):
    """Samples on the device: `triton_choice.choose`, or `ShardChoice` in a group of ranks."""

    def __call__(
        self,
        logits: torch.Tensor,
        rows: DeviceRows,
        num_valid_token_ids: int,
        out: torch.Tensor,
        *,
        may_cut: bool,
    ) -> None:
        """Choose a token for each row; `may_cut`: for any `top_k` and `top_p`."""


class StepKernels(Protocol):
    """Writes a step's inputs on the device; the module `triton_advance` is one."""

    def feed(self, buffers: StepBuffers, ring: SampledRing, num_seqs: int) -> None:
        """Carry out what was sent."""

    def advance(
        self, buffers: StepBuffers, ring: SampledRing, num_seqs: int, *, decodes: bool
    ) -> None:
        """Hand out what was sampled; of decodes, make the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLimits:
    """The largest steps that are captured."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_valid_token_ids: int

    @property
    def decode_sizes(self) -> list[int]:
        """Numbers of sequences, ascending."""
        most = self.max_num_seqs
        sizes = {*_FEW_DECODES, *range(_DECODE_STRIDE, most, _DECODE_STRIDE), most}
        return sorted(size for size in sizes if size <= most)

    @property
    def prompt_sizes(self) -> list[int]:
        """Numbers of tokens, ascending; the last one holds every step if it may be so small."""
        most = self.max_num_batched_tokens
        enough = next((size for size in PROMPT_TOKENS if size >= most), PROMPT_TOKENS[-1])
        return [size for size in PROMPT_TOKENS if size <= enough]

    @property
    def num_graphs(self) -> int:
        """Those of decodes come with cuts and without."""
        return len(self.prompt_sizes) + 2 * len(self.decode_sizes)


class GraphRunner:
    """Queues captured steps of requests that are sampled simply, and tells what they sample.

    One thread uses it; `warm_up` comes first. Nothing here waits for the device but `Launch`.

    Of a group, each rank has one of the same limits. Rank 0's `launch` has the others `follow`.
    """

    def __init__(
        self,
        forward: Forward,
        choose: Choose,
        kernels: StepKernels,
        limits: GraphLimits,
        *,
        device: torch.device,
        stream: DeviceStream,
        tell: Callable[[GraphOrder], None] | None = None,
    ) -> None:
        """`tell`: how rank 0 of a group tells the others what to follow."""
        self._forward = forward
        self._choose = choose
        self._kernels = kernels
        self._limits = limits
        self._stream = stream
        self.num_replays = 0
        make = partial(
            StepBuffers,
            max_blocks=-(-limits.max_model_len // limits.block_size),
            block_size=limits.block_size,
            device=device,
            stream=stream,
        )
        self._prompt_seqs = min(limits.max_num_seqs, _MAX_PROMPT_SEQS)
        num_prompt_tokens = limits.prompt_sizes[-1]
        self.decodes = make(max_seqs=limits.max_num_seqs, max_tokens=limits.max_num_seqs)
        self.prompts = make(max_seqs=self._prompt_seqs, max_tokens=num_prompt_tokens)
        self._ring = SampledRing(limits.max_num_seqs, device, stream)
        self._step = DeviceStep(self.decodes)
        self._samplings: WeakKeyDictionary[RequestState, bytes] = WeakKeyDictionary()
        self._tell = tell
        self._graphs: list[tuple[StepBuffers, Work]] = []
        self._decode_graphs: dict[tuple[int, bool], int] = {}
        self._prompt_graphs: dict[int, int] = {}

    def warm_up(self) -> None:
        """Compile and capture all shapes, the largest first; every row is padding meanwhile."""
        for size in reversed(self._limits.prompt_sizes):
            body = partial(self._compute_prompts, size)
            self._prompt_graphs[size] = self._capture(self.prompts, body)
        for size in reversed(self._limits.decode_sizes):
            for may_cut in (True, False):
                body = partial(self._compute_decodes, size, may_cut=may_cut)
                self._decode_graphs[size, may_cut] = self._capture(self.decodes, body)
        self._feed(self.decodes, 1)
        self._ring.reset()

    def _capture(self, buffers: StepBuffers, body: Work) -> int:
        self._graphs.append((buffers, self._stream.capture(body)))
        return len(self._graphs) - 1

    @torch.inference_mode()
    def _compute_decodes(self, size: int, *, may_cut: bool) -> None:
        views = self.decodes.views(size, size)
        logits = self._forward(views.input_ids, views.positions, views.metadata, None)
        self._sample(logits, views.rows, may_cut=may_cut)
        self._kernels.advance(self.decodes, self._ring, size, decodes=True)

    @torch.inference_mode()
    def _compute_prompts(self, size: int) -> None:
        views = self.prompts.views(size, self._prompt_seqs)
        logits = self._forward(
            views.input_ids, views.positions, views.metadata, views.logits_indices
        )
        self._sample(logits, views.rows, may_cut=True)
        self._kernels.advance(self.prompts, self._ring, self._prompt_seqs, decodes=False)

    def _sample(self, logits: torch.Tensor, rows: DeviceRows, *, may_cut: bool) -> None:
        out = self._ring.sampled[: len(rows.seed)]
        self._choose(logits, rows, self._limits.num_valid_token_ids, out, may_cut=may_cut)

    def launch(self, items: Sequence[ScheduledRequest]) -> Launch | None:
        """Queue a step of `items`; None if no captured shape holds them, or one is not simple.

        Of an item that does not sample, what is said to be sampled means nothing.
        """
        samplings = [self._sampling(item) for item in items]
        if not all(samplings):
            return None
        if all(item.num_new_tokens == 1 and item.samples for item in items):
            return self.launch_decodes(
                [DecodeRow(item.request, item.request.num_computed_tokens) for item in items]
            )
        num_tokens = sum(item.num_new_tokens for item in items)
        if len(items) > self._prompt_seqs or num_tokens > self._limits.prompt_sizes[-1]:
            return None
        rows = place_prompts(self.prompts, items, samplings)
        self._replay(self._prompt_graphs[_least(self._prompt_graphs, num_tokens)], len(items))
        return self._ring.publish(rows)

    def launch_decodes(self, rows: Sequence[DecodeRow]) -> Launch:
        """Queue a step of decodes, at most `max_num_seqs`; all were launched or found simple."""
        num_fed = self._step.num_seqs if self._step.place(rows, self._samplings) else 0
        launched = self._step.launched()
        size = _least(self._limits.decode_sizes, len(rows))
        self._replay(self._decode_graphs[size, self._step.may_cut], num_fed)
        launch = self._ring.publish(launched)
        self._step.advance(launch.first_source)
        return launch

    def follow(self, order: GraphOrder) -> None:
        """Queue what rank 0 queues."""
        if order.num_seqs:
            buffers, _ = self._graphs[order.graph]
            buffers.put(order.payload)
        self._replay(order.graph, order.num_seqs)

    def _replay(self, graph: int, num_fed: int) -> None:
        """Queue a captured step, after what was sent of so many sequences."""
        buffers, work = self._graphs[graph]
        if self._tell is not None:
            self._tell(GraphOrder(graph, num_fed, buffers.sent if num_fed else _NOTHING))
        if num_fed:
            self._feed(buffers, num_fed)
        self._stream.run(work)
        self.num_replays += 1

    def _feed(self, buffers: StepBuffers, num_seqs: int) -> None:
        self._stream.run(partial(self._kernels.feed, buffers, self._ring, num_seqs))

    def _sampling(self, item: ScheduledRequest) -> bytes:
        """What `item` is sampled with; empty if that takes more than to choose one token."""
        request = item.request
        if request not in self._samplings:
            params = request.params
            is_simple = (
                params.logprobs is None
                and params.prompt_logprobs is None
                and not has_constraints(params)
            )
            self._samplings[request] = packed_row(request) if is_simple else b""
        return b"" if item.num_drafts else self._samplings[request]


def _least(sizes: Sequence[int] | dict[int, int], count: int) -> int:
    """The smallest of `sizes` that holds `count`."""
    return min(size for size in sizes if size >= count)
