"""Requests that wait to be computed."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from qwen3_ray.core.request_state import RequestState


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
        self._ready: list[tuple[tuple[int, int], RequestState]] = []
        self._parked: dict[bytes, list[RequestState]] = {}
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
        self._make_ready(request)

    def peek(self) -> RequestState | None:
        """The first request that is not parked, which stays; None when there is none."""
        while self._ready:
            request = self._ready[0][1]
            if self._waits(request):
                return request
            heappop(self._ready)
        return None

    def pop(self) -> RequestState:
        """Take out the first request that is not parked; there must be one."""
        request = self._pop_ready()
        self.remove(request.request_id)
        return request

    def park(self, event: bytes) -> None:
        """Set the first request that is not parked aside until `unpark(event)`."""
        self._parked.setdefault(event, []).append(self._pop_ready())

    def unpark(self, event: bytes) -> None:
        """Bring back the requests that wait for `event`, to the places of their ranks."""
        for request in self._parked.pop(event, ()):
            if self._waits(request):
                self._make_ready(request)

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

    def _waits(self, request: RequestState) -> bool:
        return self._requests.get(request.request_id) is request

    def _make_ready(self, request: RequestState) -> None:
        heappush(self._ready, (request.rank, request))

    def _pop_ready(self) -> RequestState:
        self.peek()
        return heappop(self._ready)[1]
