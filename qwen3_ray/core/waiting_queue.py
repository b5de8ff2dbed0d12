"""Requests that wait to be computed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from qwen3_ray.core.request_state import RequestState


class WaitingQueue:
    """First come, first served; preempted requests come back at the front.

    Every operation is O(1), removal from the middle included. A request must not change while it
    waits: `num_tokens` counts it as it was when it came.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[str, RequestState] = OrderedDict()
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens to compute for all waiting requests."""
        return self._num_tokens

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._requests.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def push(self, request: RequestState) -> None:
        """Queue `request` last."""
        self._requests[request.request_id] = request
        self._num_tokens += request.num_pending_tokens

    def push_front(self, request: RequestState) -> None:
        """Queue `request` first: it was running before everything that waits."""
        self.push(request)
        self._requests.move_to_end(request.request_id, last=False)

    def peek(self) -> RequestState | None:
        """The first request, which stays; None when nothing waits."""
        return next(iter(self._requests.values()), None)

    def pop(self) -> RequestState:
        """Take out the first request; the queue must not be empty."""
        _, request = self._requests.popitem(last=False)
        self._num_tokens -= request.num_pending_tokens
        return request

    def remove(self, request_id: str) -> bool:
        """Take out a request; False when it does not wait here."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return False
        self._num_tokens -= request.num_pending_tokens
        return True
