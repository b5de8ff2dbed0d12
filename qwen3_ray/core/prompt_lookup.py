"""Guesses at a request's next tokens without a draft model: what followed the same ones before."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

MIN_MATCH = 2
MAX_MATCH = 8
"""A longer match than this is not told from one of this length."""
MAX_CANDIDATES = 32
MAX_WAIT = 64
_FIRST_BACKOFF = 8
_DISTRUSTFUL = 4
_NONE = 0


class PromptLookup:
    """Drafts for one request, copied from its own prompt and output (prompt-lookup decoding).

    The last tokens are looked up among the earlier ones; the draft is what came after them there.
    Of the `MAX_CANDIDATES` most recent places with the same last `MIN_MATCH` tokens, the one where
    the most tokens match is taken (up to `MAX_MATCH`), the most recent among equals.

    It drafts for as long as that pays. A draft accepted in full doubles the next one, up to
    `max_drafts`, and one that is refused for the most part shortens it to what was accepted and
    is followed by a wait: twice as long with each such draft, up to `MAX_WAIT` steps, and a
    quarter of that after each full success. It begins in the middle of this, and wherever the
    next wait would be above `_DISTRUSTFUL` steps a match of a pair alone does not count. So
    rejected tokens are bounded by four times the accepted ones, plus 4, plus one in
    `MAX_WAIT` + 1 steps; on a text that nothing foretells, that is what it costs.

    Deterministic: a function of the token ids and of what was observed. Takes about 100 bytes a
    token, small beside the kilobytes of keys and values that a token takes.
    """

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._num_drafts = min(1, max_drafts)
        self._backoff = _FIRST_BACKOFF
        self._num_waiting_steps = 0
        # A place is a number of tokens before it. The pair before place `i + MIN_MATCH` came
        # before at `_previous[i]`, and last at `_latest[pair]`.
        self._latest: dict[int, int] = {}
        self._previous = array("i")

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `token_ids`; none while it waits.

        `token_ids` are those of the last call and new ones after them. Costs O(new tokens),
        summed over the calls.
        """
        if self._num_waiting_steps > 0:
            self._num_waiting_steps -= 1
            return []
        num_drafts = min(limit, self._num_drafts)
        if num_drafts < 1 or len(token_ids) <= MIN_MATCH:
            return []
        self._index(token_ids)
        place = self._find(token_ids)
        if place == _NONE:
            return []
        # A match that overlaps the end is a loop: the draft runs on through itself.
        period = len(token_ids) - place
        return [token_ids[place + index % period] for index in range(num_drafts)]

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Learn from a draft that was computed: how many tokens it had and how many were right."""
        if num_drafts == 0:
            return
        if num_accepted == num_drafts:
            self._num_drafts = min(self._max_drafts, 2 * num_drafts)
            self._backoff //= 4
            return
        self._num_drafts = max(1, num_accepted)
        if 2 * num_accepted < num_drafts:
            self._backoff = min(MAX_WAIT, max(1, 2 * self._backoff))
            self._num_waiting_steps = self._backoff

    def _index(self, token_ids: Sequence[int]) -> None:
        """Enter all pairs but the last one, which is the one to look up."""
        latest, previous = self._latest, self._previous
        for place in range(len(previous) + MIN_MATCH, len(token_ids)):
            pair = _pair_before(token_ids, place)
            previous.append(latest.get(pair, _NONE))
            latest[pair] = place

    def _find(self, token_ids: Sequence[int]) -> int:
        """The place whose tokens before it match the last tokens best; `_NONE` if none counts."""
        best, best_length = _NONE, MIN_MATCH - 1 if self._backoff < _DISTRUSTFUL else MIN_MATCH
        place = self._latest.get(_pair_before(token_ids, len(token_ids)), _NONE)
        for _ in range(MAX_CANDIDATES):
            if place == _NONE or best_length == MAX_MATCH:
                break
            length = _match_length(token_ids, place)
            if length > best_length:
                best, best_length = place, length
            place = self._previous[place - MIN_MATCH]
        return best


def _pair_before(token_ids: Sequence[int], place: int) -> int:
    return token_ids[place - 2] << 32 | token_ids[place - 1]


def _match_length(token_ids: Sequence[int], place: int) -> int:
    """How many tokens before `place`, of which the last pair matches, equal the last tokens."""
    longest = min(MAX_MATCH, place)
    length = MIN_MATCH
    while length < longest and token_ids[place - length - 1] == token_ids[-length - 1]:
        length += 1
    return length
