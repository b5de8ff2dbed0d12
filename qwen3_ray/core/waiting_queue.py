"""Requests that wait to be computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

from qwen3_ray.core.request_state import RequestState

_Entry = tuple[tuple[int, int], RequestState]
_Heap = list[_Entry]


class WaitingQueue:
    """Requests in the order of their rank: by priority, then by arrival.

    A request may be parked until something happens, and does not stand in the way of others
    meanwhile. Every operation is O(log(requests)), removal from the middle included, and
    `unpark` for each request that it brings back. A request's tokens must not change while it
    waits: `num_tokens` counts them as they were when it came.
    """

    def __init__(self) -> None:
        self._requests: dict[str, RequestState] = {}
        # Both below may still name requests that were removed; those are passed over.
        self._ready: _Heap = []
        self._parked: dict[bytes, _Heap] = {}
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens to compute for all waiting requests."""
        return self._num_tokens

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RequestState]:
        """Every request, in no order."""
        return iter(self._requests.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def push(self, request: RequestState) -> None:
        """Queue `request` at the place that its rank gives it."""
        self._requests[request.request_id] = request
        self._num_tokens += request.num_pending_tokens
        heappush(self._ready, (request.rank, request))

    def peek(self, events: Iterable[bytes] = ()) -> RequestState | None:
        """The first request that is not parked, which stays; None when there is none.

        One that is parked for one of `events` is brought back if it comes before all others.
        """
        ready = self._first(self._ready)
        for event in events:
            parked = self._first(self._parked.get(event, []))
            if parked is not None and (ready is None or parked < ready):
                ready = heappop(self._parked[event])
                heappush(self._ready, ready)
        return ready and ready[1]

    def pop(self) -> RequestState:
        """Take out the first request that is not parked; there must be one."""
        _, request = self._pop_ready()
        self.remove(request.request_id)
        return request

    def park(self, event: bytes) -> None:
        """Set the first request that is not parked aside until `unpark(event)`."""
        heappush(self._parked.setdefault(event, []), self._pop_ready())

    def unpark(self, event: bytes) -> None:
        """Bring back the requests that wait for `event`, to the places of their ranks."""
        for entry in self._parked.pop(event, ()):
            if self._waits(entry):
                heappush(self._ready, entry)

    def unpark_all(self) -> None:
        """Bring back all parked requests."""
        for event in list(self._parked):
            self.unpark(event)

    @property
    def events(self) -> set[bytes]:
        """What parked requests wait for. O(parked requests)."""
        return {event for event, parked in self._parked.items() if any(map(self._waits, parked))}

    def remove(self, request_id: str) -> bool:
        """Take out a request, parked or not; False when it does not wait here."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return False
        self._num_tokens -= request.num_pending_tokens
        return True

    def _waits(self, entry: _Entry) -> bool:
        return self._requests.get(entry[1].request_id) is entry[1]

    def _first(self, heap: _Heap) -> _Entry | None:
        """The first entry of `heap` that still waits; those before it are dropped."""
        while heap and not self._waits(heap[0]):
            heappop(heap)
        return heap[0] if heap else None

    def _pop_ready(self) -> _Entry:
        self._first(self._ready)
        return heappop(self._ready)
