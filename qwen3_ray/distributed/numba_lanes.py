"""Sums and messages between the ranks of one machine, through memory that all of them map.

The memory is cut into lanes that know nothing of each other; one thread of each rank uses a lane
at a time, and all ranks take the same turns on it. For each rank a lane holds a flag, the number
of turns that the rank has posted, and two slots, which turns use alternately. In a turn a rank
writes its own slot, posts, waits until the ranks that it reads have posted, and reads.

One wait a turn is enough. A rank begins turn t when all have posted turn t - 1. It then overwrites
what it wrote in turn t - 2; whoever has posted turn t - 1 has read all that it wants of turn t - 2,
because a rank reads a turn's slots before it begins the next one. Where all ranks waited for all
in turn t - 1, as sums do, the condition holds already and costs a look at the flags.

Who waits spins, then yields, then sleeps. A turn fails when a rank is gone that has not posted
it, or is silent for too long; the group is then good for nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_arrays import floats_at
from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.cpu.numba_sync import atomic_add, atomic_load, atomic_store, relax, sleep, wake

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

_memcpy: Callable[[int, int, int], int] = types.ExternalFunction(  # type: ignore[assignment]
    "memcpy", types.intp(types.intp, types.intp, types.intp)
)

SLOT_BYTES = 512 * 1024
"""Longer turns are cut. With smaller slots ranks wait for each other more often, and on a busy
machine each wait can be long."""
NAP_NS = 50_000_000
"""A sleep's end, should nobody wake it: how late a dead rank is noticed."""
_NUM_SPINS = 1_500
"""About half a millisecond; a rank that is that late may be late by seconds."""
_LINE_BYTES = 128
"""What one rank writes and others read lies apart: cores fetch lines of 64 bytes by pairs."""
_FLOAT_BYTES = 4
_FLOATS_PER_LINE = _LINE_BYTES // _FLOAT_BYTES
_MIN_LANE_FLOATS = 2_048
"""Fewer are summed in less time than a further turn takes."""
_PAGE_BYTES = 4096

# Words from the start of the memory on, a line each; then the flags, then, on a page, the slots.
_LOST, _SLEEPERS, _NAP, _FLAGS = 0, _LINE_BYTES, 2 * _LINE_BYTES, 3 * _LINE_BYTES
NAP_WORDS = slice(_NAP // 8, _NAP // 8 + 2)
"""Where seconds and nanoseconds of a nap are kept, among the memory's words."""


class SharedSum(NamedTuple):
    """A rank's view of its group's memory, as plain numbers for kernels.

    Good for as long as the `SharedCollectives` live that gave it.
    """

    rank: int
    size: int
    num_lanes: int
    """Most threads of a rank that can share a sum."""
    base: int
    """Address of the memory in this process."""
    max_naps: int
    """After so many a silent rank is given up."""


def shared_bytes(size: int, num_lanes: int) -> int:
    """Memory that a group of `size` ranks needs. All zeros, but `NAP_WORDS`, when it begins."""
    return _slots_offset(size, num_lanes) + num_lanes * 2 * size * SLOT_BYTES


def _slots_offset(size: int, num_lanes: int) -> int:
    end = _FLAGS + num_lanes * size * _LINE_BYTES
    return -(-end // _PAGE_BYTES) * _PAGE_BYTES


_compiled_slots_offset = callee(_slots_offset)


@callee
def _flag(shared: SharedSum, lane: int, rank: int) -> int:
    return shared.base + _FLAGS + (lane * shared.size + rank) * _LINE_BYTES


@callee
def _slot(shared: SharedSum, lane: int, turn: int, rank: int) -> int:
    index = (lane * 2 + (turn & 1)) * shared.size + rank
    offset = _compiled_slots_offset(shared.size, shared.num_lanes)
    return shared.base + offset + index * SLOT_BYTES


@callee
def _misses_a_lost_rank(shared: SharedSum, lane: int, num_turns: int) -> bool:
    lost = atomic_load(shared.base + _LOST)
    if lost == 0:
        return False
    for rank in range(shared.size):
        # The bit comes after all that the rank has posted.
        if lost >> rank & 1 and atomic_load(_flag(shared, lane, rank)) < num_turns:
            return True
    return False


@callee
def _wait(shared: SharedSum, lane: int, rank: int, num_turns: int) -> bool:
    """Wait until `rank` has posted `num_turns`; False if a rank is gone that has not."""
    flag = _flag(shared, lane, rank)
    spins = 0
    naps = 0
    seen = atomic_load(flag)
    while seen < num_turns:
        if naps > shared.max_naps or _misses_a_lost_rank(shared, lane, num_turns):
            return False
        if spins < _NUM_SPINS:
            relax(spins)
            spins += 1
        else:
            # Who posts looks for sleepers afterwards: it sees this one, or this one sees its post.
            atomic_add(shared.base + _SLEEPERS, 1)
            sleep(flag, seen, shared.base + _NAP)
            atomic_add(shared.base + _SLEEPERS, -1)
            naps += 1
        seen = atomic_load(flag)
    return True


@callee
def _wait_for_all(shared: SharedSum, lane: int, num_turns: int) -> bool:
    for rank in range(shared.size):  # noqa: SIM110  (Numba knows no generators in `all`)
        if not _wait(shared, lane, rank, num_turns):
            return False
    return True


@callee
def _post(shared: SharedSum, lane: int, turn: int) -> None:
    flag = _flag(shared, lane, shared.rank)
    atomic_store(flag, turn + 1)
    if atomic_load(shared.base + _SLEEPERS) > 0:
        wake(flag)


@callee
def _begin(shared: SharedSum, lane: int) -> int:
    """This rank's next turn, once its slot is free; -1 if a rank is lost."""
    turn = atomic_load(_flag(shared, lane, shared.rank))
    return turn if _wait_for_all(shared, lane, turn) else -1


@callee
def _add_slots(shared: SharedSum, lane: int, turn: int, x_address: int, size: int) -> None:
    x = floats_at(x_address, size)
    first = floats_at(_slot(shared, lane, turn, 0), size)
    second = floats_at(_slot(shared, lane, turn, 1), size)
    for i in range(size):
        x[i] = first[i] + second[i]
    for rank in range(2, shared.size):
        addend = floats_at(_slot(shared, lane, turn, rank), size)
        for i in range(size):
            x[i] += addend[i]


@callee
def _sum_on_lane(shared: SharedSum, lane: int, x_address: int, num_elements: int) -> bool:
    for begin in range(0, num_elements, SLOT_BYTES // _FLOAT_BYTES):
        size = min(num_elements - begin, SLOT_BYTES // _FLOAT_BYTES)
        address = x_address + begin * _FLOAT_BYTES
        turn = _begin(shared, lane)
        if turn < 0:
            return False
        _memcpy(_slot(shared, lane, turn, shared.rank), address, size * _FLOAT_BYTES)
        _post(shared, lane, turn)
        if not _wait_for_all(shared, lane, turn + 1):
            return False
        _add_slots(shared, lane, turn, address, size)
    return True


@njit(cache=True, nogil=True)
def sum_over_ranks(
    part: int, num_parts: int, shared: SharedSum, x_address: int, num_elements: int
) -> bool:
    """Sum `num_elements` float32 values over all ranks, in place and in rank order.

    Each of `num_parts` threads of a rank calls it, from kernels too, and sums its share of the
    elements; `part` tells them apart. All ranks make the same calls in the same order. Their
    `num_parts` may differ: which elements go by which lane depends on their number alone, and each
    thread takes its lanes in ascending order, so that somebody can always go on.

    Threads of a rank do not wait for each other: `x` must be complete before the first one calls,
    and is summed when all have returned. Two or more ranks.

    Returns:
        False if a rank is lost; `x` is then undefined.
    """
    num_lanes = min(shared.num_lanes, -(-num_elements // _MIN_LANE_FLOATS))
    lines = -(-num_elements // _FLOATS_PER_LINE)
    share = -(-lines // max(1, num_lanes)) * _FLOATS_PER_LINE
    for lane in range(part, num_lanes, num_parts):
        begin = lane * share
        size = min(num_elements - begin, share)
        if not _sum_on_lane(shared, lane, x_address + begin * _FLOAT_BYTES, size):
            return False
    return True


@njit(cache=True, nogil=True)
def sum_parts(part: int, num_parts: int, shared: SharedSum, x: Floats, ok: Flags) -> None:
    """`sum_over_ranks`, which leaves its result in `ok[part]`."""
    ok[part] = sum_over_ranks(part, num_parts, shared, x.ctypes.data, x.size)


class ByteRows(NamedTuple):
    """What each rank sends, as many bytes on each, and how they are laid out where they arrive."""

    address: int
    num_bytes: int
    row_bytes: int
    out: int
    """Address of [row, rank, row's bytes]; 0 on ranks that only send."""


@callee
def _place(shared: SharedSum, rows: ByteRows, rank: int, begin: int, source: int) -> None:
    """Copy a turn's bytes of `rank`, those from its byte `begin` on, to where they belong."""
    end = min(begin + SLOT_BYTES, rows.num_bytes)
    while begin < end:
        row, column = divmod(begin, rows.row_bytes)
        size = min(end - begin, rows.row_bytes - column)
        _memcpy(rows.out + (row * shared.size + rank) * rows.row_bytes + column, source, size)
        source += size
        begin += size


@njit(cache=True, nogil=True)
def gather_bytes(lane: int, shared: SharedSum, rows: ByteRows) -> bool:
    """Copy all ranks' bytes to `rows.out`. Ranks that only send do not wait for the others."""
    for begin in range(0, rows.num_bytes, SLOT_BYTES):
        size = min(rows.num_bytes - begin, SLOT_BYTES)
        turn = _begin(shared, lane)
        if turn < 0:
            return False
        _memcpy(_slot(shared, lane, turn, shared.rank), rows.address + begin, size)
        _post(shared, lane, turn)
        if rows.out == 0:
            continue
        for rank in range(shared.size):
            if not _wait(shared, lane, rank, turn + 1):
                return False
            _place(shared, rows, rank, begin, _slot(shared, lane, turn, rank))
    return True


@njit(cache=True, nogil=True)
def broadcast_bytes(lane: int, shared: SharedSum, x_address: int, num_bytes: int) -> bool:
    """Copy rank 0's bytes to the others. Rank 0 waits for none that is less than two turns behind.

    On rank 0 it fails as soon as any rank is gone.
    """
    for begin in range(0, num_bytes, SLOT_BYTES):
        size = min(num_bytes - begin, SLOT_BYTES)
        turn = atomic_load(_flag(shared, lane, shared.rank))
        if shared.rank == 0:
            if _begin(shared, lane) < 0 or atomic_load(shared.base + _LOST) != 0:
                return False
            _memcpy(_slot(shared, lane, turn, 0), x_address + begin, size)
        else:
            if not _wait(shared, lane, 0, turn + 1):
                return False
            _memcpy(x_address + begin, _slot(shared, lane, turn, 0), size)
        _post(shared, lane, turn)
    return True


@njit(cache=True, nogil=True)
def lost_ranks(base: int) -> int:
    """A bit for each rank that is gone; `base` is the memory's address."""
    return atomic_load(base + _LOST)


@njit(cache=True, nogil=True)
def lose(base: int, rank: int) -> None:
    """Let everybody know that `rank` is gone; once for each."""
    atomic_add(base + _LOST, 1 << rank)
