"""What a scheduler has counted since it was made."""

from __future__ import annotations

from dataclasses import dataclass


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
