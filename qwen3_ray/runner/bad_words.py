"""Which tokens would complete a sequence that must not come up."""

from __future__ import annotations

from collections.abc import Sequence


class BadWords:
    """Token sequences, found by their last token but one.

    As in vLLM a sequence counts in the output alone: its beginning in the prompt is not seen.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._alone = tuple(ids[0] for ids in sequences if len(ids) == 1)
        self._after: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for ids in sequences:
            if len(ids) > 1:
                beginning, last = tuple(ids[:-1]), ids[-1]
                self._after.setdefault(beginning[-1], []).append((beginning, last))
        self.num_needed = max((len(ids) - 1 for ids in sequences), default=0)
        """How many of the output's last tokens matter."""

    def bans(self, output_end: Sequence[int]) -> tuple[int, ...]:
        """Tokens that must not follow an output that ends with `output_end`."""
        if not output_end:
            return self._alone
        end = tuple(output_end)
        completed = (
            last
            for beginning, last in self._after.get(end[-1], ())
            if end[-len(beginning) :] == beginning
        )
        return (*self._alone, *completed)
