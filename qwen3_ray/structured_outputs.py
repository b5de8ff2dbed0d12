"""What the text of an output must look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from qwen3_ray.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Exactly one form that an output must have, with vLLM's names. Checked when built.

    Raises:
        RequestError: not exactly one form is given.
    """

    json: str | None = None
    """JSON text of a JSON schema."""
    regex: str | None = None
    """Matches the whole output."""
    choice: Sequence[str] | None = None
    """The output is one of these. Stored as a tuple."""
    grammar: str | None = None
    """EBNF."""
    json_object: bool = False
    """Any JSON object."""

    def __post_init__(self) -> None:
        if self.choice is not None:
            object.__setattr__(self, "choice", tuple(self.choice))
        given = [
            field.name for field in fields(self) if getattr(self, field.name) not in (None, False)
        ]
        if len(given) != 1:
            raise RequestError(
                "structured_outputs",
                "needs exactly one of json, regex, choice, grammar and json_object, "
                f"got {', '.join(given) or 'none'}",
            )
