"""How many tokens are guessed ahead in one step, and for whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen3_ray.core.finish import EndRules
from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.prompt_lookup import PromptLookup
from qwen3_ray.core.request_state import Lookup, RequestState
from qwen3_ray.core.step import ScheduledRequest

MAX_DECODE_ROWS = 8
"""No drafts beyond this many rows, the decoding requests' own included.

On a CPU a step of 6 rows takes 1.3 times as long as one of a single row, since both wait for the
weights. From about 6 rows on it is bound by arithmetic, each row costs its full price, and a
guess that may be wrong costs more than it brings.
"""


class Drafting:
    """Gives decoding requests drafts to verify, while rows, tokens and free blocks are left.

    Args:
        max_drafts: most for one request and step; 0 for none.
        make_lookup: makes what one request's drafts come from, given `max_drafts`.
    """

    def __init__(
        self,
        kv: KVManager,
        rules: EndRules,
        *,
        max_drafts: int,
        make_lookup: Callable[[int], Lookup] = PromptLookup,
    ) -> None:
        self._kv = kv
        self._rules = rules
        self._max_drafts = max_drafts
        self._make_lookup = make_lookup

    def draft(
        self, decodes: Sequence[RequestState], num_spare_tokens: int
    ) -> list[ScheduledRequest]:
        """The parts in a step of `decodes`, of each its one known token and drafts after it.

        What rows there are is shared equally; a request that does not want its part leaves it to
        those after it. Nobody loses a block or a token of this step for a guess.
        """
        num_rows = min(MAX_DECODE_ROWS - len(decodes), num_spare_tokens)
        scheduled = []
        for index, request in enumerate(decodes):
            num_drafts = 0
            if num_rows > 0:
                share = -(-num_rows // (len(decodes) - index))
                num_drafts = self._draft_for(request, min(share, self._max_drafts))
                num_rows -= num_drafts
            scheduled.append(ScheduledRequest(request, 1 + num_drafts, num_drafts))
        return scheduled

    def _draft_for(self, request: RequestState, limit: int) -> int:
        limit = min(
            limit,
            self._rules.num_tokens_left(request) - 1,
            self._kv.room_of(request) - 1,
        )
        if limit < 1:
            return 0
        if request.lookup is None:
            request.lookup = self._make_lookup(self._max_drafts)
        request.draft_token_ids = request.lookup.propose(request.token_ids, limit)[:limit]
        self._kv.grow(request, 1 + len(request.draft_token_ids))
        return len(request.draft_token_ids)

    def observe(self, request: RequestState, num_drafts: int, num_accepted: int) -> None:
        """Learn from drafts that were verified, and take back the room of those that were wrong."""
        if request.lookup is not None:
            request.lookup.observe(num_drafts, num_accepted)
        request.draft_token_ids = []
        self._kv.trim(request)
