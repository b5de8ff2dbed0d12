"""Memory that the ranks of one machine map, and how each learns that another has ended.

Both are files without a name, which a rank opens through its peer's entry in /proc: nothing is
left behind however a process ends, no directory limits their size, and only processes of the
same user get at them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from torch._C import _distributed_c10d as c10d

Words = NDArray[np.int64]
OnEnd = Callable[[Words, int], None]


class SharedMemory:
    """One rank's mapping of the group's memory, and its sign of life: a lock on a file.

    The system frees the lock when the process ends, or when this object does.
    """

    def __init__(self, words: Words, sign_of_life: int) -> None:
        self.words = words
        """The memory; zeros where no rank has written."""
        weakref.finalize(self, os.close, sign_of_life)


def meet(
    store: c10d.Store, rank: int, size: int, num_bytes: int, *, on_end: OnEnd, timeout_s: float
) -> SharedMemory:
    """Map memory together with the other ranks of this machine; blocks until all have.

    Args:
        on_end: called in a thread, with the memory and a rank, when that rank has ended. Each
            rank is told of the next one, the last of rank 0.

    Raises:
        OSError: this cannot be had here; then every rank raises it.
        RuntimeError: the others did not come within `timeout_s` seconds.
    """

    timeout = timedelta(seconds=timeout_s)

    def exchange(name: str, make: Callable[[], str]) -> list[str]:
        """All ranks' `make()`; an OSError of one is raised on every rank."""
        try:
            text = "+" + make()
        except OSError as error:
            text = f"-rank {rank}: {error}"
        keys = [f"{name}/{other}" for other in range(size)]
        store.set(keys[rank], text)
        store.wait(keys, timeout)
        texts = [store.get(key).decode() for key in keys]
        problems = [text[1:] for text in texts if text.startswith("-")]
        if problems:
            raise OSError(problems[0])
        return [text[1:] for text in texts]

    with _Files(rank, (rank + 1) % size, num_bytes) as files:
        offers = exchange("offer", files.offer)
        exchange("taken", lambda: files.take(offers))
        return files.hand_over(on_end)


class _Files:
    """What a rank opens to meet the others. On leaving all are closed, copies live on."""

    def __init__(self, rank: int, next_rank: int, num_bytes: int) -> None:
        self._rank = rank
        self._next_rank = next_rank
        self._num_bytes = num_bytes
        self._open = ExitStack()
        self._sign_of_life = self._watched = -1
        self._words: Words = np.zeros(0, np.int64)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    def offer(self) -> str:
        """Make this rank's files; where they are: of the sign of life, then of the memory."""
        self._sign_of_life = self._keep(_create("qwen3-ray sign of life"))
        fcntl.flock(self._sign_of_life, fcntl.LOCK_EX)
        memory = self._keep(_create("qwen3-ray memory"))
        if self._rank == 0:
            # All pages now: memory that runs out must not end a process later.
            os.posix_fallocate(memory, 0, self._num_bytes)
        return f"{_place(self._sign_of_life)} {_place(memory)}"

    def take(self, offers: Sequence[str]) -> str:
        """Open the next rank's sign of life, and map rank 0's memory."""
        self._watched = self._keep(_open(offers[self._next_rank].split()[0]))
        memory = self._keep(_open(offers[0].split()[1]))
        self._words = np.frombuffer(mmap.mmap(memory, self._num_bytes), np.int64)
        return ""

    def hand_over(self, on_end: OnEnd) -> SharedMemory:
        """The mapping, with the watch over the next rank begun."""
        watched, words, next_rank = os.dup(self._watched), self._words, self._next_rank

        def watch() -> None:
            fcntl.flock(watched, fcntl.LOCK_EX)
            os.close(watched)
            on_end(words, next_rank)

        threading.Thread(target=watch, name="rank-watch", daemon=True).start()
        return SharedMemory(words, os.dup(self._sign_of_life))

    def _keep(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd


def _create(name: str) -> int:
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memory files")
    return os.memfd_create(name)


def _place(fd: int) -> str:
    """Where another process finds the file, and its inode, so that no other is taken for it."""
    return f"/proc/{os.getpid()}/fd/{fd}:{os.fstat(fd).st_ino}"


def _open(place: str) -> int:
    path, _, inode = place.partition(":")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if os.fstat(fd).st_ino != int(inode):
        os.close(fd)
        raise FileNotFoundError(f"{path} is another file than it was")
    return fd
