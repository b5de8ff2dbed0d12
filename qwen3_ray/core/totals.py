"""What a scheduler has counted since it was made."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3_ray.core.request_state import RequestState


@dataclass(slots=True)
class Totals:
    """The scheduler alone adds to them."""

    num_preemptions: int = 0
    """Times that a request lost its blocks to one that comes before it."""
    num_prefix_queries: int = 0
    """Prompt tokens of the requests that looked into the prefix cache when they first began."""
    num_prefix_hits: int = 0
    """Those of them that it held."""
    num_draft_tokens: int = 0
    """Tokens guessed ahead."""
    num_accepted_tokens: int = 0
    """Those of them that became output."""

    def note_found(self, request: RequestState) -> None:
        """Count what the prefix cache gave `request`, which begins for the first time."""
        if request.num_prompt_logprobs_left == 0:
            self.num_prefix_queries += request.prompt_len
            self.num_prefix_hits += request.num_cached_tokens or 0
