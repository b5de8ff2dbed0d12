"""How the tokens of one step are shared among the prompts that wait to be computed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from itertools import groupby
from typing import NamedTuple

from qwen3_ray.core.request_state import RequestState

MAX_PARTIAL_PREFILLS = 4
"""Prompts that may be computed in part at one time. More would all be done later."""
PLACES = (b"a place among the prefills in flight", b"a place and rows for prompt logprobs")
"""What prompts wait for that are too long for a step; the second one is for those with logprobs."""
PROMPT_LOGPROB_ROWS = 128
"""Most prompt logprobs of one step: 128 rows of 151,936 float32 logits take 78 MB."""


class Verdict(Enum):
    """What a step can do for a newcomer."""

    WHOLE = auto()
    """All of it can be computed."""
    PART = auto()
    """It can take a place among the prefills in flight."""
    NO_PLACE = auto()
    """It is too long for one step and all places are taken, or rows alone are what it lacks."""
    LATER = auto()
    """What is left in this step is not enough."""


class _Amount(NamedTuple):
    num_tokens: int
    num_rows: int
    """Logit rows for prompt logprobs."""


class PrefillBudget:
    """The tokens of one step that decodes leave, for prefills in flight and for newcomers.

    Cut into one share for each of the `MAX_PARTIAL_PREFILLS` places and one more. A prefill in
    flight is sure of its share, so endless newcomers cannot stop it. All other shares are for
    newcomers that can be done at once, in their order, so a short prompt never waits for a long
    one. What they leave goes to the prefills in flight, in equal parts but to none more than it
    has to compute (max-min fair). More urgent requests take all they need before others.

    Rows for prompt logprobs are shared in the same way: who gets few, gets few tokens too.

    Args:
        num_tokens: what decodes leave.
        prefills: those in flight, in order of rank.
    """

    def __init__(self, num_tokens: int, prefills: Iterable[RequestState]) -> None:
        self._prefills = list(prefills)
        self._all = _Amount(num_tokens, PROMPT_LOGPROB_ROWS)
        self._share = _Amount(
            max(1, num_tokens // (MAX_PARTIAL_PREFILLS + 1)),
            PROMPT_LOGPROB_ROWS // (MAX_PARTIAL_PREFILLS + 1),
        )
        self._used = _Amount(0, 0)
        self._has_joined = False
        self.places = list(PLACES)
        """Those that were not refused in this step."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are not spent on newcomers."""
        return self._all.num_tokens - self._used.num_tokens

    def judge(self, request: RequestState, num_found: int) -> Verdict:
        """What the step can do for `request`, of which `num_found` tokens need no computing."""
        need = _Amount(request.num_tokens - num_found, request.num_prompt_logprobs_left)
        room = self._room(request.rank[0])
        if _fits(_sum(need, self._used), room):
            return Verdict.WHOLE
        left = self._left_over()
        if self._can_join(need, room, left):
            return Verdict.PART
        if left.num_tokens > 0:
            return Verdict.NO_PLACE
        return Verdict.LATER if self._has_place or _fits(need, room) else Verdict.NO_PLACE

    @property
    def _has_place(self) -> bool:
        return len(self._prefills) < MAX_PARTIAL_PREFILLS

    def _can_join(self, need: _Amount, room: _Amount, left: _Amount) -> bool:
        """Whether a newcomer that needs more than the step has may get a part of it.

        Either tokens are left over, or a place is free and a share for it. Of many that come
        together one joins in a step, so that the first ones are done first.
        """
        if left.num_tokens > 0 and (need.num_rows == 0 or left.num_rows > 0):
            return True
        share = _Amount(*map(min, need, self._share))
        return (
            self._has_place
            and _fits(_sum(share, self._used), room)
            and (not self._has_joined or left.num_tokens > 0)
        )

    def take_all(self, request: RequestState) -> int:
        """Spend what all of `request` needs; its tokens to compute. It was judged `WHOLE`."""
        need = _Amount(request.num_pending_tokens, request.num_prompt_logprobs_left)
        self._used = _sum(self._used, need)
        return need.num_tokens

    def join(self, request: RequestState) -> None:
        """Take `request` among the prefills in flight. It was judged `PART`."""
        insort(self._prefills, request, key=_rank)
        self._has_joined = True

    def leave(self, priority: int) -> RequestState | None:
        """The last prefill in flight, which goes, if places lack and it is below `priority`."""
        if self._has_place or self._prefills[-1].rank[0] <= priority:
            return None
        return self._prefills.pop()

    def refuse(self, request: RequestState) -> bytes:
        """What `request`, which was judged `NO_PLACE`, waits for: nobody gets it in this step."""
        place = PLACES[request.num_prompt_logprobs_left > 0]
        if place in self.places:
            self.places.remove(place)
        return place

    def shares(self) -> list[tuple[RequestState, int]]:
        """Each prefill in flight with the tokens that it gets, in order of rank; 0 for none."""
        return [(request, amount.num_tokens) for request, amount in self._shares()]

    def _shares(self) -> Iterator[tuple[RequestState, _Amount]]:
        num_tokens = self.num_tokens
        num_rows = self._all.num_rows - self._used.num_rows
        for _, group in groupby(self._prefills, key=_priority):
            requests = list(group)
            wanted_rows = [request.num_prompt_logprobs_left for request in requests]
            rows = _deal(num_rows, wanted_rows, self._share.num_rows)
            wanted_tokens = list(map(_most_tokens, requests, rows))
            tokens = _deal(num_tokens, wanted_tokens, self._share.num_tokens)
            num_rows -= sum(rows)
            num_tokens -= sum(tokens)
            yield from zip(requests, map(_Amount, tokens, rows), strict=True)

    def _left_over(self) -> _Amount:
        """What neither newcomers nor prefills in flight use."""
        amounts = [amount for _, amount in self._shares()]
        return _Amount(
            self.num_tokens - sum(amount.num_tokens for amount in amounts),
            self._all.num_rows - self._used.num_rows - sum(amount.num_rows for amount in amounts),
        )

    def _room(self, priority: int) -> _Amount:
        """What newcomers of `priority` may have of this step, together with those before them."""
        num_tokens, num_rows = self._all
        for request in self._prefills:
            if request.rank[0] > priority:
                break
            rows = request.num_prompt_logprobs_left
            if request.rank[0] == priority:
                rows = min(rows, self._share.num_rows)
                tokens = min(_most_tokens(request, rows), self._share.num_tokens)
            else:
                tokens = _most_tokens(request, rows)
            num_tokens -= tokens
            num_rows -= rows
        return _Amount(num_tokens, num_rows)


def max_min_shares(total: int, wants: Sequence[int]) -> list[int]:
    """Equal parts of `total`, but to none more than it wants; the others get what one leaves.

    Nothing is left while one wants more. What cannot be divided goes to those that want least,
    the first one among equals.
    """
    shares = [0] * len(wants)
    order = sorted(range(len(wants)), key=wants.__getitem__)
    for place, index in enumerate(order):
        shares[index] = min(wants[index], -(-total // (len(wants) - place)))
        total -= shares[index]
    return shares


def _deal(total: int, wants: Sequence[int], share: int) -> list[int]:
    """Deal out `total`: to each its share, as long as there is any, and then fair parts."""
    sure = []
    for want in wants:
        sure.append(min(want, share, total))
        total -= sure[-1]
    more = max_min_shares(total, [want - got for want, got in zip(wants, sure, strict=True)])
    return [got + rest for got, rest in zip(sure, more, strict=True)]


def _most_tokens(request: RequestState, num_rows: int) -> int:
    """How many of its tokens a step may compute that has `num_rows` rows for its logprobs."""
    num_pending = request.num_pending_tokens
    if request.num_prompt_logprobs_left <= num_rows:
        return num_pending
    num_known = request.num_prompt_logprobs
    return min(num_pending, num_known + num_rows - request.num_computed_tokens)


def _sum(one: _Amount, other: _Amount) -> _Amount:
    return _Amount(one.num_tokens + other.num_tokens, one.num_rows + other.num_rows)


def _fits(need: _Amount, room: _Amount) -> bool:
    return need.num_tokens <= room.num_tokens and need.num_rows <= room.num_rows


def _rank(request: RequestState) -> tuple[int, int]:
    return request.rank


def _priority(request: RequestState) -> int:
    return request.rank[0]
