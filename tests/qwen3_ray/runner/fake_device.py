"""A fake model whose next token follows from what it reads back through block tables.

A slot keeps the token and a hash of all tokens up to it. A row whose context is not what its
sequence's ids make it - a stale id, a wrong slot, a block of someone else - gets other logits.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Sequence

import torch

from qwen3_ray.attention.base import AttentionMetadata
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.device_stream import Work
from qwen3_ray.runner.sampled_ring import SampledRing
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR
from qwen3_ray.runner.step_buffers import StepBuffers

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
