"""Requests that hold KV blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from qwen3_ray.core.request_state import RequestState


class RunningSet:
    """Requests in the order of their rank: by priority, then by arrival.

    Adding and removing cost O(log(requests)), and a move of pointers within one list.
    """

    def __init__(self) -> None:
        self._ordered: list[RequestState] = []
        self._by_id: dict[str, RequestState] = {}

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._ordered)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def add(self, request: RequestState) -> None:
        """Put `request` at the place that its rank gives it."""
        self._ordered.insert(self._place(request), request)
        self._by_id[request.request_id] = request

    def remove(self, request_id: str) -> RequestState | None:
        """Take out a request; None when it is not here."""
        request = self._by_id.pop(request_id, None)
        if request is not None:
            del self._ordered[self._place(request)]
        return request

    @property
    def last(self) -> RequestState:
        """The least urgent, youngest request; there must be one."""
        return self._ordered[-1]

    def _place(self, request: RequestState) -> int:
        return bisect_left(self._ordered, request.rank, key=_rank)


def _rank(request: RequestState) -> tuple[int, int]:
    return request.rank
