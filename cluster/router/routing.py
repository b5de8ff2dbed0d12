"""Which replica gets a request: a cost in tokens and a total order. Pure; the clock is an argument.

Does not know what a replica has cached, nor how full its KV blocks are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """What a router knows of one replica's work, in tokens."""

    replica_id: str
    num_waiting_tokens: int = 0
    """Prompt tokens that the replica has accepted and not computed yet."""
    num_running: int = 0
    """Requests that decode: each adds one token to every step."""
    num_sent_tokens: int = 0
    """Prompt tokens sent by this router of which the replica's report does not know yet."""


def cost(view: ReplicaView, num_prompt_tokens: int) -> int:
    """Tokens the replica computes up to and with the step that gives this request's first token."""
    queued = view.num_waiting_tokens + view.num_sent_tokens
    return queued + view.num_running + num_prompt_tokens


def ranked(views: Iterable[ReplicaView], num_prompt_tokens: int) -> list[str]:
    """Replica ids, the cheapest first; equal costs go by id, so that a test can name the winner."""
    ordered = sorted(views, key=lambda view: (cost(view, num_prompt_tokens), view.replica_id))
    return [view.replica_id for view in ordered]


class SentTokens:
    """Prompt tokens sent to each replica and not yet part of its own report.

    An entry counts until the replica answers on its stream (`settle`), or until it is
    `covered_after_s` old: by then a report that includes it has come. A request may be counted
    twice in between, never not at all. All operations take constant time, amortised.
    """

    def __init__(self, *, covered_after_s: float) -> None:
        self._covered_after_s = covered_after_s
        self._entries: dict[str, dict[str, tuple[float, int]]] = {}
        self._totals: dict[str, int] = {}

    def add(self, replica_id: str, request_id: str, num_tokens: int, *, now_s: float) -> None:
        self._entries.setdefault(replica_id, {})[request_id] = (now_s, num_tokens)
        self._totals[replica_id] = self._totals.get(replica_id, 0) + num_tokens

    def settle(self, replica_id: str, request_id: str) -> None:
        """Stop counting a request; a no-op if it is not counted (any more)."""
        entries = self._entries.get(replica_id, {})
        entry = entries.pop(request_id, None)
        if entry is not None:
            self._totals[replica_id] -= entry[1]
        if not entries:
            self._entries.pop(replica_id, None)
            self._totals.pop(replica_id, None)

    def total(self, replica_id: str, *, now_s: float) -> int:
        """Tokens still counted for a replica; lets go of entries that are old enough."""
        while oldest := next(iter(self._entries.get(replica_id, {}).items()), None):
            request_id, (sent_s, _) = oldest
            if now_s - sent_s < self._covered_after_s:
                break
            self.settle(replica_id, request_id)
        return self._totals.get(replica_id, 0)
