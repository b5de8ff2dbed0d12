"""Which tokens the form of a request's output allows, row by row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.errors import RequestError
from qwen3_ray.runner.sampling_rows import Int32s
from qwen3_ray.structured_outputs import StructuredOutputs


class Matcher(Protocol):
    """Follows one output through a grammar.

    Each method may raise RequestError: the grammar is too much to follow.
    """

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""

    def fill_mask(self, mask: Int32s, /) -> None:
        """Set bit `i % 32` of word `i // 32` where id `i` may follow, and clear all others.

        End-of-text ids are allowed where the output may end.
        """

    def accept(self, token_id: int, /) -> bool:
        """Go on after `token_id`; False, and no change, if it may not follow."""

    def rollback(self, num_tokens: int, /) -> None:
        """Forget the last ones that were accepted."""


class Grammar(Protocol):
    """A form of output, ready to be matched."""

    def matcher(self) -> Matcher:
        """A new one, at the beginning of an output."""


class Grammars(Protocol):
    """Gives grammars; one that was compiled before comes at once."""

    def compile(self, form: StructuredOutputs, /) -> Grammar:
        """The grammar of a form.

        Raises:
            RequestError: the form is none.
        """


class GrammarMasks:
    """A request's matcher, kept up with its output."""

    def __init__(self, matcher: Matcher, eos_token_ids: Collection[int], num_words: int) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._num_words = num_words
        self._num_accepted = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow the output."""
        return self._matcher.is_complete

    def masks(self, request: RequestState, drafts: Sequence[int]) -> list[Int32s]:
        """For what follows the request's tokens, and then each draft as if it were one of them.

        There are fewer where a draft may not follow, or ends the output.

        Raises:
            RequestError: the output so far is not of the form, or it is too much to follow.
        """
        self._accept_output(request)
        matcher, masks = self._matcher, []
        num_tried = 0
        for draft in (*drafts, None):
            mask = np.empty(self._num_words, np.int32)
            matcher.fill_mask(mask)
            masks.append(mask)
            if draft is None or draft in self._eos_token_ids or not matcher.accept(draft):
                break
            num_tried += 1
        matcher.rollback(num_tried)
        return masks

    def _accept_output(self, request: RequestState) -> None:
        for token_id in request.token_ids[request.prompt_len + self._num_accepted :]:
            if not self._matcher.accept(token_id):
                raise RequestError(
                    "structured_outputs",
                    f"token {self._num_accepted} of the output, {token_id}, may not be there",
                )
            self._num_accepted += 1
