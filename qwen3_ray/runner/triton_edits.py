"""Logits after masks, bans, biases and penalties, by Triton kernels: see `sampling_rows`."""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray

from qwen3_ray.gpu.triton_jit import Kernel, device_function, kernel
from qwen3_ray.runner.sampling_rows import BIAS, ROW, SEEN, Int32s, SamplingRows
from qwen3_ray.runner.triton_logits import CHUNK, Chunks, chunks_of

WORD = 8
"""Bytes of a field of a record."""
_ROW_WORDS = tl.constexpr(ROW.itemsize // WORD)
_BIAS_WORDS = tl.constexpr(BIAS.itemsize // WORD)
_SEEN_WORDS = tl.constexpr(SEEN.itemsize // WORD)


def field(name: str) -> tl.constexpr:
    """Which word of a row's record it is."""
    return tl.constexpr(list(ROW.fields or ()).index(name))


_REPETITION, _FREQUENCY = field("repetition"), field("frequency")
_PRESENCE, _MASK = field("presence"), field("mask")
_BANS, _BIASES, _SEEN = field("bans_start"), field("biases_start"), field("seen_start")
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_BLOCK = 256
_NUM_WARPS = 8


class DeviceBatch:
    """A step's rows and their edits on the device, record by record: `SamplingRows` as it is."""

    def __init__(self, batch: SamplingRows, device: torch.device) -> None:
        def copy(array: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(array.view(np.int64)).to(device)

        self.rows = copy(batch.rows)
        """[num_rows * words of a row], int64, whatever the field is."""
        self._host_rows = batch.rows
        self._masks: torch.Tensor = torch.from_numpy(_at_least_one(batch.masks)).to(device)
        self._entries: list[tuple[Kernel, str, torch.Tensor]] = [
            (_ban, "bans", copy(batch.bans)),
            (_bias, "biases", copy(batch.biases)),
            (_penalise, "seen", copy(batch.seen)),
        ]

    def edit(
        self, logits: torch.Tensor, num_tokens: int, rows: slice, *, chunk_size: int = CHUNK
    ) -> torch.Tensor:
        """Edited logits of some rows, in float32; what is banned is minus infinity.

        What was not finite before is no number, banned or not. Columns from `num_tokens` on are
        void.

        Args:
            logits: [at least num_rows, vocab_size].
            num_tokens: ids beyond are not known.
            rows: which; [num_selected, vocab_size] is returned.
            chunk_size: logits for each program.
        """
        selected = logits[rows]
        edited = torch.empty(selected.shape, dtype=torch.float32, device=logits.device)
        records = self.rows[rows.start * _ROW_WORDS.value :]
        chunks: Chunks = chunks_of(num_tokens, chunk_size)
        _mask[(len(selected), chunks.num)](
            selected,
            selected.stride(0),
            num_tokens,
            records,
            self._masks,
            self._masks.shape[1],
            edited,
            edited.stride(0),
            chunk_size=chunks.size,
            num_warps=_NUM_WARPS,
        )
        host_rows = self._host_rows[rows]
        for apply, name, entries in self._entries:
            longest = int((host_rows[f"{name}_stop"] - host_rows[f"{name}_start"]).max())
            if longest:
                grid = (len(selected), -(-longest // _BLOCK))
                apply[grid](records, entries, edited, edited.stride(0), num_tokens, block=_BLOCK)
        return edited


def _at_least_one(masks: Int32s) -> Int32s:
    """So that a kernel always has a pointer, to the same type and with one row's width."""
    return masks if len(masks) else np.zeros((1, masks.shape[1]), np.int32)


@device_function
def load_field(records: tl.tensor, row: tl.tensor, index: tl.constexpr) -> tl.tensor:
    """An integer of a row's record."""
    return tl.load(records + row * _ROW_WORDS + index)


@device_function
def _double(words: tl.tensor) -> tl.tensor:
    """A number's bits, int64 -> the number."""
    return words.to(tl.float64, bitcast=True)


@kernel
def _mask(
    logits: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    records: tl.tensor,
    masks: tl.tensor,
    num_words: tl.tensor,
    edited: tl.tensor,
    edited_stride: tl.tensor,
    chunk_size: tl.constexpr,
) -> None:
    """Copy a chunk, less what the row's mask forbids."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = chunk * chunk_size + tl.arange(0, chunk_size)
    is_known = ids < num_tokens
    x = tl.load(logits + row * stride + ids, mask=is_known, other=0).to(tl.float32)
    is_finite = tl.abs(x) < float("inf")
    mask = load_field(records, row, _MASK)
    if mask >= 0:
        words = tl.load(masks + mask * num_words + ids // 32, mask=is_known, other=0)
        x = tl.where(((words >> (ids % 32)) & 1) == 1, x, -float("inf"))
    x = tl.where(is_finite, x, float("nan"))
    tl.store(edited + row * edited_stride + ids, x, mask=is_known)


@device_function
def _entries(records: tl.tensor, start_field: tl.constexpr, block: tl.constexpr) -> tl.tensor:
    """Indices of this program's block of a row's entries, and which of them exist."""
    row = tl.program_id(0).to(tl.int64)
    first = load_field(records, row, start_field) + tl.program_id(1) * block
    index = first + tl.arange(0, block)
    return index, index < load_field(records, row, start_field + 1)


@device_function
def _places(
    edited: tl.tensor, stride: tl.tensor, ids: tl.tensor, is_entry: tl.tensor, num_tokens: tl.tensor
) -> tl.tensor:
    """Where the ids' logits are, these, and which of them may change: neither bad nor banned."""
    places = edited + tl.program_id(0).to(tl.int64) * stride + ids
    x = tl.load(places, mask=is_entry & (ids < num_tokens), other=float("nan"))
    return places, x.to(tl.float64), tl.abs(x) < float("inf")


@device_function
def _clamped(x: tl.tensor) -> tl.tensor:
    """float64 to float32 and its range."""
    return tl.minimum(tl.maximum(x, _LOWEST), -_LOWEST).to(tl.float32)


@kernel
def _ban(
    records: tl.tensor,
    bans: tl.tensor,
    edited: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    block: tl.constexpr,
) -> None:
    index, is_entry = _entries(records, _BANS, block)
    ids = tl.load(bans + index, mask=is_entry, other=0)
    places, _, may_change = _places(edited, stride, ids, is_entry, num_tokens)
    tl.store(places, -float("inf"), mask=may_change)


@kernel
def _bias(
    records: tl.tensor,
    biases: tl.tensor,
    edited: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Each id comes once in a row."""
    index, is_entry = _entries(records, _BIASES, block)
    ids = tl.load(biases + index * _BIAS_WORDS, mask=is_entry, other=0)
    bias = tl.load(biases + index * _BIAS_WORDS + 1, mask=is_entry, other=0)
    places, x, may_change = _places(edited, stride, ids, is_entry, num_tokens)
    tl.store(places, _clamped(x + _double(bias)), mask=may_change)


@kernel
def _penalise(
    records: tl.tensor,
    seen: tl.tensor,
    edited: tl.tensor,
    stride: tl.tensor,
    num_tokens: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Each id comes once in a row."""
    row = tl.program_id(0).to(tl.int64)
    index, is_entry = _entries(records, _SEEN, block)
    ids = tl.load(seen + index * _SEEN_WORDS, mask=is_entry, other=0)
    count = tl.load(seen + index * _SEEN_WORDS + 1, mask=is_entry, other=0)
    in_prompt = tl.load(seen + index * _SEEN_WORDS + 2, mask=is_entry, other=0)
    places, x, may_change = _places(edited, stride, ids, is_entry, num_tokens)
    factor = _double(load_field(records, row, _REPETITION))
    repeated = tl.where(x > 0, x / factor, x * factor)
    x = tl.where((count > 0) | (in_prompt > 0), repeated, x)
    x -= _double(load_field(records, row, _FREQUENCY)) * count.to(tl.float64)
    x -= tl.where(count > 0, _double(load_field(records, row, _PRESENCE)), 0.0)
    tl.store(places, _clamped(x), mask=may_change)
