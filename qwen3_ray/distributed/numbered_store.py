"""A store for groups one of whose processes has been in another group before."""

from __future__ import annotations

import re
from datetime import timedelta

from torch._C import _distributed_c10d as c10d

_NUMBERED = re.compile(r"(.*?/)(\d+)(/.*)?")


class NumberedStore(c10d.Store):
    """Another store, whose numbered keys are counted anew: `name/7/...` is `name/0/...` at first.

    Ranks that share memory of their GPUs exchange what it takes under keys like `name/7/1`, in
    which torch counts the exchanges of the process. In a process that has been in a group before,
    as rank 0 of an `LLM` may, the count is ahead of the others', and each would wait for keys that
    nobody writes.

    Has what torch's exchanges call, and must be kept for as long as the group that has it.
    """

    def __init__(self, store: c10d.Store) -> None:
        super().__init__()
        self._store = store
        self._numbers: dict[tuple[str, str], int] = {}

    def set(self, key: str, value: str) -> None:
        """See `Store`."""
        self._store.set(self._renumbered(key), value)

    def get(self, key: str) -> bytes:
        """See `Store`; waits for the key."""
        return self._store.get(self._renumbered(key))

    def add(self, key: str, value: int) -> int:
        """See `Store`."""
        return self._store.add(self._renumbered(key), value)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """See `Store`."""
        renumbered = [self._renumbered(key) for key in keys]
        if timeout is None:
            self._store.wait(renumbered)
        else:
            self._store.wait(renumbered, timeout)

    def _renumbered(self, key: str) -> str:
        match = _NUMBERED.fullmatch(key)
        if match is None:
            return key
        name, number, rest = match.groups(default="")
        # Ranks make the same exchanges in the same order, so that they count alike.
        count = sum(known == name for known, _ in self._numbers)
        return f"{name}{self._numbers.setdefault((name, number), count)}{rest}"
