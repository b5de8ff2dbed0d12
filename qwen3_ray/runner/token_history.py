"""How often each token has occurred in a request: what penalties follow from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qwen3_ray.runner.sampling_rows import SEEN, Records


class TokenHistory:
    """Counts of prompt and output tokens, O(1) for each token added."""

    def __init__(self, prompt_token_ids: Iterable[int]) -> None:
        ids = list(dict.fromkeys(prompt_token_ids))
        self._index = {token_id: index for index, token_id in enumerate(ids)}
        self._records = np.zeros(2 * len(ids) + 16, SEEN)
        self._records["token_id"][: len(ids)] = ids
        self._records["in_prompt"][: len(ids)] = 1
        self._counts = self._records["num_in_output"]

    @property
    def seen(self) -> Records:
        """[num_seen] of `SEEN`, each token once; changes with the history."""
        return self._records[: len(self._index)]

    def add(self, token_id: int) -> None:
        """Count a token of the output."""
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self._records):
            self._records = np.concatenate((self._records, np.zeros_like(self._records)))
            self._counts = self._records["num_in_output"]
        self._records["token_id"][index] = token_id
        self._counts[index] += 1

    def remove(self, token_id: int) -> None:
        """Undo `add`. The token stays in `seen`, where its count says that it never came."""
        self._counts[self._index[token_id]] -= 1
