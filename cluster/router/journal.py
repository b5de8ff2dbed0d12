"""What a router remembers of one stream: everything needed to say what comes next. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3_ray.errors import EngineError
from qwen3_ray.request import Usage
from qwen3_ray.sampling_params import SamplingParams


@dataclass(slots=True, eq=False, kw_only=True)
class JournalEntry:
    """One stream: its request, where it runs, and the output ids that have arrived.

    `params.seed` and `params.max_tokens` are set, so the entry alone determines the output.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    replica_id: str = ""
    """The replica that runs it; empty before the first one has taken it."""
    token_ids: list[int] = field(default_factory=list)

    def append(self, from_index: int, token_ids: tuple[int, ...]) -> None:
        """Take over output ids, the first of which is number `from_index` of the output.

        Raises:
            EngineError: ids are missing before them or come twice.
        """
        if token_ids and from_index != len(self.token_ids):
            raise EngineError(
                f"replica {self.replica_id} sent output tokens from number {from_index} on, "
                f"expected number {len(self.token_ids)}"
            )
        self.token_ids.extend(token_ids)

    @property
    def usage(self) -> Usage:
        """Tokens taken so far."""
        return Usage(
            prompt_tokens=len(self.prompt_token_ids), completion_tokens=len(self.token_ids)
        )
