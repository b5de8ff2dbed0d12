"""The ids that the latest forward passes sampled: on the device, and on their way to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner.device_stream import DeviceStream, Work, copy

NUM_TURNS = 4
"""Forward passes whose ids are kept; a power of two, see `triton_advance`. At most three are under
way at a time: one ahead, one beside it for newcomers, and the next one ahead."""


class LaunchedRow(NamedTuple):
    """One request's part of a forward pass."""

    row: int
    position: int
    """Of the last token that was computed."""
    block_id: int
    """Where its key and value were written."""


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A forward pass that is under way, or done."""

    rows: Mapping[RequestState, LaunchedRow]
    first_source: int
    """Where row 0's id lies on the device, see `StepFields.sources`."""
    _ids: torch.Tensor
    _wait: Work

    def source(self, request: RequestState) -> int:
        """Where the id lies that was sampled for `request`."""
        return self.first_source + self.rows[request].row

    def token_ids(self) -> list[int]:
        """What was sampled, by row; waits for it. At most `NUM_TURNS - 1` launches later."""
        self._wait()
        ids: list[int] = self._ids.tolist()
        return ids


class SampledRing:
    """Ids of `NUM_TURNS` forward passes in turn. The device counts turns as the host does."""

    def __init__(self, max_seqs: int, device: torch.device, stream: DeviceStream) -> None:
        self.max_seqs = max_seqs
        self.sampled = torch.zeros(max_seqs, dtype=torch.int32, device=device)
        """[max_seqs], where a forward pass leaves its ids first."""
        self.ids = torch.zeros(NUM_TURNS, max_seqs, dtype=torch.int32, device=device)
        self.turn = torch.zeros(1, dtype=torch.int32, device=device)
        """[1], the number of forward passes so far."""
        self._stream = stream
        self._on_host = torch.zeros(
            NUM_TURNS, max_seqs, dtype=torch.int32, pin_memory=device.type == "cuda"
        )
        self._turn = 0

    def publish(self, rows: Mapping[RequestState, LaunchedRow]) -> Launch:
        """Queue the copy to the host of what the forward pass that was queued last samples."""
        turn = self._turn
        self._turn = (turn + 1) % NUM_TURNS
        source, target = self.ids[turn], self._on_host[turn]
        copy(self._stream, source, target)
        return Launch(rows, turn * self.max_seqs, target, self._stream.mark())

    def reset(self) -> None:
        """Count anew, after forward passes that were not published."""
        self._stream.run(self.turn.zero_)
        self._turn = 0
