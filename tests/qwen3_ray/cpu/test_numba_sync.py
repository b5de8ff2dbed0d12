"""Words that several threads share, from kernels that run without the GIL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_ray.cpu.compiler import njit
from qwen3_ray.cpu.numba_sync import atomic_add, atomic_load, atomic_store, relax

Words = NDArray[np.int64]


@njit(nogil=True)
def add_often(address: int, num_times: int) -> int:
    largest = -1
    for _ in range(num_times):
        largest = max(largest, atomic_add(address, 3))
    return largest


@njit(nogil=True)
def play(address: int, data: Words, own: int, num_turns: int) -> int:
    """Two threads by turns; each reads what the other wrote beside the word. Counts wrong ones."""
    num_wrong = 0
    for turn in range(own, 2 * num_turns, 2):
        spins = 0
        while atomic_load(address) != turn:
            relax(spins)
            spins += 1
        num_wrong += data[0] != turn
        data[0] = turn + 1
        atomic_store(address, turn + 1)
    return num_wrong


@pytest.fixture
def words() -> Words:
    return np.zeros(16, np.int64)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_no_addition_is_lost(words: Words, num_threads: int) -> None:
    add_often(words.ctypes.data, 0)  # compiled before the threads begin
    start = threading.Barrier(num_threads)

    def run() -> int:
        start.wait()
        return int(add_often(words.ctypes.data, 20_000))

    with ThreadPoolExecutor(num_threads) as pool:
        largest = [future.result() for future in [pool.submit(run) for _ in range(num_threads)]]
    assert words[0] == 3 * 20_000 * num_threads
    assert max(largest) == words[0] - 3  # the value before
    assert not words[1:].any()


def test_a_word_brings_along_what_was_written_before_it(words: Words) -> None:
    play(words.ctypes.data, words[8:], 0, 0)
    with ThreadPoolExecutor(2) as pool:
        players = [pool.submit(play, words.ctypes.data, words[8:], own, 2_000) for own in (0, 1)]
        assert [player.result() for player in players] == [0, 0]
    assert words[0] == words[8] == 4_000


def test_words_hold_all_of_int64(words: Words) -> None:
    @njit
    def swap(address: int, value: int) -> int:
        before = atomic_load(address)
        atomic_store(address, value)
        return before

    for value in (-1, 2**63 - 1, -(2**63)):
        swap(words.ctypes.data + 8, value)
        assert swap(words.ctypes.data + 8, value) == value == words[1]
