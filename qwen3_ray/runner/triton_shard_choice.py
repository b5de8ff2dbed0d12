"""Sampling where each rank holds the logits of its own share of the vocabulary.

The ranks tell each other the largest logit of each row and its id, then the largest score, if any
row is drawn: 8 bytes a row and rank each time, instead of all logits on one rank. A row's token is
what `triton_choice.choose` finds in all ranks' logits side by side, for rows that neither `top_k`
nor `top_p` cuts.
"""

# ruff: noqa: PLR0917 - pointers are given to kernels by position

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.gpu.triton_jit import device_function, kernel
from qwen3_ray.gpu.triton_philox import gumbel_noise
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.sampling_rows import NOTHING_ALLOWED, NUMERICAL_ERROR
from qwen3_ray.runner.triton_choice import choose
from qwen3_ray.runner.triton_logits import (
    CHUNK,
    is_drawn,
    key_of,
    scaled,
    value_of,
    within_gap,
)

_NUM_WARPS = 8
_NUMERICAL_ERROR = tl.constexpr(NUMERICAL_ERROR)
_NOTHING_ALLOWED = tl.constexpr(NOTHING_ALLOWED)
_LARGEST_ID = tl.constexpr(2**31 - 1)
_LANES = tl.constexpr(4)


@dataclass(frozen=True, slots=True)
class ShardChoice:
    """Samples on the device, on every rank of a group the same tokens.

    Without cuts the ranks tell each other what `choose_over_ranks` needs. With them rank 0 gathers
    all logits, chooses, and tells the others.
    """

    tp: TPGroup

    def __call__(
        self,
        logits: torch.Tensor,
        rows: DeviceRows,
        num_valid_token_ids: int,
        out: torch.Tensor,
        *,
        may_cut: bool,
    ) -> None:
        """See `triton_choice.choose`; `logits` are those of this rank, [num_rows, shard_size]."""
        tp = self.tp
        if not may_cut:
            first_id = tp.rank * logits.shape[1]
            choose_over_ranks(logits, rows, num_valid_token_ids, out, tp, first_id=first_id)
            return
        gathered = tp.gather(logits)
        if gathered is not None:
            choose(gathered, rows, num_valid_token_ids, out)
        if tp.collectives is not None:
            tp.collectives.broadcast(out)


def choose_over_ranks(
    logits: torch.Tensor,
    rows: DeviceRows,
    num_valid_token_ids: int,
    out: torch.Tensor,
    tp: TPGroup,
    *,
    first_id: int,
    chunk_size: int = CHUNK,
) -> None:
    """Choose one token below `num_valid_token_ids` for each row; every rank must call it.

    Can be captured in a CUDA graph as far as the group's collectives can.

    Args:
        logits: [num_rows, shard_size], contiguous rows: of ids from `first_id` on. What lies beyond
            the known ids is never read.
        rows: of as many rows, the same on every rank, none with a `top_k` or `top_p` that cuts.
        num_valid_token_ids: at most 2^20.
        out: [num_rows], int32; becomes the same tokens on every rank, see `triton_choice.choose`.
        tp: each rank has the ids that follow the last rank's.
        chunk_size: logits for each program, a power of two; changes no token.
    """
    num_rows = len(out)
    if num_rows == 0:
        return
    num_known = min(max(0, num_valid_token_ids - first_id), logits.shape[1])
    # Chunks begin where lanes of random numbers do.
    num_chunks = max(1, -(-(first_id % _LANES.value + num_known) // chunk_size))
    grid = (num_rows, num_chunks)
    keys = torch.empty(grid, dtype=torch.int64, device=logits.device)
    shape = (logits, logits.stride(0), first_id, num_known)
    _survey[grid](*shape, keys, chunk_size=chunk_size, num_warps=_NUM_WARPS)
    largest = _best_of_ranks(keys, tp)
    _draw[grid](
        *shape,
        rows.temperature,
        rows.max_gap,
        rows.seed,
        rows.position,
        rows.choice,
        largest,
        keys,
        chunk_size=chunk_size,
        num_warps=_NUM_WARPS,
    )
    drawn = _best_of_ranks(keys, tp)
    _pick[(num_rows,)](rows.temperature, largest, drawn, out)


def _best_of_ranks(keys: torch.Tensor, tp: TPGroup) -> torch.Tensor:
    """[num_rows, num_chunks] -> [num_rows], the largest of all ranks' on every rank."""
    best = keys.amax(1)
    if tp.collectives is None:
        return best
    return torch.stack(tp.collectives.all_gather(best)).amax(0)


@device_function
def _pack(value: tl.tensor, token_id: tl.tensor) -> tl.tensor:
    """int64, the larger the larger `value` is, and among equals the lower the id is."""
    value = tl.where(value == 0, 0.0, value)  # 0 has no sign
    return (key_of(value) << 32) | (token_id ^ _LARGEST_ID).to(tl.int64)


@device_function
def _value(key: tl.tensor) -> tl.tensor:
    return value_of(key >> 32)


@device_function
def _token_id(key: tl.tensor) -> tl.tensor:
    return ((key & _LARGEST_ID) ^ _LARGEST_ID).to(tl.int32)


@device_function
def _first_of_chunk(first_id: tl.tensor, chunk_size: tl.constexpr) -> tl.tensor:
    """The first id of this program's chunk; up to three may be another rank's."""
    return first_id // _LANES * _LANES + tl.program_id(1) * chunk_size


@device_function
def _load(
    logits: tl.tensor, stride: tl.tensor, ids: tl.tensor, first_id: tl.tensor, num_known: tl.tensor
) -> tl.tensor:
    """Logits of `ids` in float32, minus infinity for those that this rank does not have."""
    index = ids - first_id
    is_known = (index >= 0) & (index < num_known)
    row = tl.program_id(0).to(tl.int64)
    x = tl.load(logits + row * stride + index, mask=is_known, other=-float("inf"))
    return x.to(tl.float32), is_known


@kernel(do_not_specialize=["first_id", "num_known"])
def _survey(
    logits: tl.tensor,
    stride: tl.tensor,
    first_id: tl.tensor,
    num_known: tl.tensor,
    keys: tl.tensor,
    chunk_size: tl.constexpr,
) -> None:
    """Each chunk's largest logit; infinity where one is no finite number."""
    ids = _first_of_chunk(first_id, chunk_size) + tl.arange(0, chunk_size)
    x, is_known = _load(logits, stride, ids, first_id, num_known)
    is_bad = is_known & ((tl.abs(x) < float("inf")) == 0)
    key = tl.max(_pack(tl.where(is_bad, float("inf"), x), ids))
    tl.store(keys + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), key)


@kernel(do_not_specialize=["first_id", "num_known"])
def _draw(
    logits: tl.tensor,
    stride: tl.tensor,
    first_id: tl.tensor,
    num_known: tl.tensor,
    temperatures: tl.tensor,
    max_gaps: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    choices: tl.tensor,
    largest_keys: tl.tensor,
    keys: tl.tensor,
    chunk_size: tl.constexpr,
) -> None:
    """Each chunk's token with the largest score; keys of rows that are not drawn stay."""
    row = tl.program_id(0)
    temperature = tl.load(temperatures + row)
    largest = _value(tl.load(largest_keys + row))
    if is_drawn(temperature, largest) == 0:
        return
    first = _first_of_chunk(first_id, chunk_size)
    ids = first + tl.arange(0, chunk_size)
    x, _ = _load(logits, stride, ids, first_id, num_known)
    noise = gumbel_noise(
        tl.load(seeds + row),
        tl.load(positions + row),
        tl.load(choices + row),
        first,
        chunk_size,
    )
    score = scaled(x, largest, temperature) + noise
    is_kept = within_gap(x, largest, tl.load(max_gaps + row))
    key = tl.max(_pack(tl.where(is_kept, score, -float("inf")), ids))
    tl.store(keys + row * tl.num_programs(1) + tl.program_id(1), key)


@kernel
def _pick(
    temperatures: tl.tensor, largest_keys: tl.tensor, drawn_keys: tl.tensor, out: tl.tensor
) -> None:
    """Each row's token."""
    row = tl.program_id(0)
    key = tl.load(largest_keys + row)
    largest = _value(key)
    token_id = _token_id(key)
    if is_drawn(tl.load(temperatures + row), largest):
        token_id = _token_id(tl.load(drawn_keys + row))
    token_id = tl.where(largest == float("inf"), _NUMERICAL_ERROR, token_id)
    token_id = tl.where(largest == -float("inf"), _NOTHING_ALLOWED, token_id)
    tl.store(out + row, token_id)
