"""The inputs of a step at fixed places of a device's memory, and one copy that fills them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_ray.attention.base import AttentionMetadata
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.device_stream import DeviceStream, copy

T = TypeVar("T")
Array = NDArray[Any]

_ALIGNMENT = 16  # bytes: what kernels expect of a tensor's address
_NUM_STAGES = 2


class StepFields(NamedTuple, Generic[T]):
    """What is sent: of each sequence, of each token, and blocks to be put into block tables."""

    seed: T
    """[max_seqs], int64; this and the next five as in `DeviceRows`."""
    temperature: T
    max_gap: T
    top_k: T
    top_p: T
    choice: T
    seq_lens: T
    """[max_seqs], of no sequence 0. The position of the token to be sampled as well."""
    logits_indices: T
    """[max_seqs], the row of each sequence's last token. Decodes need none."""
    sources: T
    """[max_seqs], where the sampled id lies that is the row's input; -1: `input_ids` has it."""
    first_columns: T
    """[max_seqs], from where on the sequence's block table is written; -1: nowhere."""
    num_columns: T
    """[max_seqs], how many blocks are written there; the table ends with them."""
    starts: T
    """[max_seqs], the first of them in `blocks`."""
    query_start_loc: T
    """[max_seqs + 1]"""
    input_ids: T
    """[max_tokens]"""
    positions: T
    """[max_tokens]"""
    slot_mapping: T
    """[max_tokens], of no token -1."""
    blocks: T
    """[max_seqs * max_blocks]; only as many as are needed are sent."""


class StepViews(NamedTuple):
    """Device tensors of one shape of step: what the model and the sampler read."""

    input_ids: torch.Tensor
    """[num_tokens]"""
    positions: torch.Tensor
    """[num_tokens]"""
    metadata: AttentionMetadata
    logits_indices: torch.Tensor
    """[num_seqs]"""
    rows: DeviceRows
    """[num_seqs] each."""


class StepBuffers:
    """`host` holds what the next `send` brings to `device`, in one copy from pinned memory.

    Staging memory is doubled: the host may lay out a step while the copy of the last one waits.
    Block tables are on the device alone and are written block by block, see `triton_advance`.
    """

    def __init__(
        self,
        *,
        max_seqs: int,
        max_tokens: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
        stream: DeviceStream,
    ) -> None:
        """`max_blocks`: of one sequence."""
        self.max_seqs = max_seqs
        self.block_size = block_size
        self.num_copies = 0
        """How often anything was sent."""
        self.sent: NDArray[np.int32] = np.empty(0, np.int32)
        """What was sent last, all of it; holds until the next but one time."""
        self._stream = stream
        counts = (
            *[max_seqs] * (len(StepFields._fields) - 5),
            max_seqs + 1,
            *[max_tokens] * 3,
            max_seqs * max_blocks,
        )
        sizes = [count * dtype.itemsize for dtype, count in zip(_DTYPES, counts, strict=True)]
        begins = list(accumulate(map(_aligned, sizes), initial=0))
        self._num_fixed_bytes = begins[-2]
        self._bytes = np.zeros(begins[-1], np.uint8)
        self._device_bytes = torch.zeros(begins[-1], dtype=torch.uint8, device=device)
        spans = [
            (dtype, slice(begin, begin + size))
            for dtype, begin, size in zip(_DTYPES, begins, sizes, strict=False)
        ]
        self.host = StepFields[Array](*(self._bytes[span].view(dtype) for dtype, span in spans))
        self.device = StepFields[torch.Tensor](
            *(self._device_bytes[span].view(_TORCH[dtype]) for dtype, span in spans)
        )
        self.block_tables = torch.zeros(max_seqs, max_blocks, dtype=torch.int32, device=device)
        self.num_blocks = torch.zeros(max_seqs, dtype=torch.int32, device=device)
        """[max_seqs], known blocks of each table."""
        self._stages = [_stage(begins[-1], device) for _ in range(_NUM_STAGES)]
        self._waits = [stream.mark() for _ in range(_NUM_STAGES)]
        self.host.slot_mapping[:] = -1
        self.device.slot_mapping.fill_(-1)  # captured before anything is sent

    def send(self, blocks: Sequence[int]) -> None:
        """Queue the copy of all fields, with `blocks` as the last one."""
        words = self._bytes[: self._num_fixed_bytes].view(np.int32)
        self.put(words, np.array(blocks, np.int32))

    def put(self, *parts: NDArray[np.int32]) -> None:
        """Queue the copy of what another rank's buffers `sent`, or of its parts in their order."""
        stage = self._stages[self.num_copies % _NUM_STAGES]
        self._waits[self.num_copies % _NUM_STAGES]()
        words = stage.numpy().view(np.int32)
        self.sent = np.concatenate(parts, out=words[: sum(map(len, parts))])
        source, target = stage[: self.sent.nbytes], self._device_bytes[: self.sent.nbytes]
        copy(self._stream, source, target)
        self._waits[self.num_copies % _NUM_STAGES] = self._stream.mark()
        self.num_copies += 1

    def views(self, num_tokens: int, num_seqs: int) -> StepViews:
        """The first tokens and sequences."""
        fields = self.device
        rows = DeviceRows(
            temperature=fields.temperature[:num_seqs],
            max_gap=fields.max_gap[:num_seqs],
            top_k=fields.top_k[:num_seqs],
            top_p=fields.top_p[:num_seqs],
            seed=fields.seed[:num_seqs],
            position=fields.seq_lens[:num_seqs],
            choice=fields.choice[:num_seqs],
        )
        metadata = AttentionMetadata(
            query_start_loc=fields.query_start_loc[: num_seqs + 1],
            seq_lens=fields.seq_lens[:num_seqs],
            block_tables=self.block_tables[:num_seqs],
            slot_mapping=fields.slot_mapping[:num_tokens],
            block_size=self.block_size,
        )
        return StepViews(
            fields.input_ids[:num_tokens],
            fields.positions[:num_tokens],
            metadata,
            fields.logits_indices[:num_seqs],
            rows,
        )


_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)
_DTYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.int64),
    *(_FLOAT32, _FLOAT32, _INT32, _FLOAT32),
    *[_INT32] * (len(StepFields._fields) - 5),
)
_TORCH: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.int64): torch.int64,
    _INT32: torch.int32,
    _FLOAT32: torch.float32,
}


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _stage(num_bytes: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
