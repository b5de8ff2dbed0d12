"""What a request's parameters do to its logits, kept up with its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner.bad_words import BadWords
from qwen3_ray.runner.grammar_masks import GrammarMasks
from qwen3_ray.runner.sampling_rows import (
    BIAS,
    NOTHING_SEEN,
    Int32s,
    Records,
    RowEdits,
)
from qwen3_ray.runner.token_history import TokenHistory
from qwen3_ray.sampling_params import SamplingParams

_WORD_BITS = 32


def has_constraints(params: SamplingParams) -> bool:
    """Whether logits are edited before a token is drawn from them."""
    return _has_penalties(params) or bool(
        params.min_tokens
        or params.logit_bias
        or params.bad_words_token_ids
        or params.allowed_token_ids is not None
        or params.structured_outputs is not None
    )


class Constraints:
    """Of one request. Each token of it is looked at once; drafts are tried and taken back."""

    def __init__(
        self,
        request: RequestState,
        *,
        eos_token_ids: frozenset[int],
        grammar: GrammarMasks | None,
        num_words: int,
    ) -> None:
        """`num_words`: of a mask."""
        params = request.params
        self._grammar = grammar
        self._biases = np.array(list(params.logit_bias.items()), BIAS)
        self._bad_words = BadWords(params.bad_words_token_ids)
        self._endings = tuple(eos_token_ids.union(params.stop_token_ids))
        # A form has an end, past which there is no going on.
        never = grammar is not None and params.ignore_eos
        self._never = tuple(eos_token_ids) if never else ()
        self._allowed = None
        if params.allowed_token_ids is not None:
            self._allowed = mask_of(params.allowed_token_ids, num_words)
        self._history: TokenHistory | None = None
        if _has_penalties(params):
            counts_prompt = params.repetition_penalty != 1.0
            prompt = request.token_ids[: request.prompt_len] if counts_prompt else ()
            self._history = TokenHistory(prompt)
        self._num_counted = request.prompt_len

    def edits(self, request: RequestState, drafts: Sequence[int]) -> list[RowEdits]:
        """For what follows the request's tokens, and then each draft as if it were one of them.

        There are fewer where a draft may not follow, or ends the output.

        Raises:
            RequestError: the output so far is not of the form that it must have, or the form is
                too much to follow.
        """
        masks: list[Int32s | None] = [self._allowed] * (1 + len(drafts))
        if self._grammar is not None:
            masks = [self._and_allowed(mask) for mask in self._grammar.masks(request, drafts)]
        return [
            RowEdits(
                mask=mask,
                bans=self._bans(request, drafts[:num_drafts]),
                biases=self._biases,
                seen=seen,
            )
            for num_drafts, (mask, seen) in enumerate(
                zip(masks, self._seen(request, drafts), strict=False)
            )
        ]

    def is_complete(self) -> bool:
        """Whether the form of the output is complete, and nothing but its end may follow.

        Raises:
            RequestError: the form is too much to follow.
        """
        return self._grammar is not None and self._grammar.is_complete

    def _and_allowed(self, mask: Int32s) -> Int32s:
        return mask if self._allowed is None else mask & self._allowed

    def _bans(self, request: RequestState, drafts: Sequence[int]) -> tuple[int, ...]:
        num_needed = self._bad_words.num_needed
        start = max(request.prompt_len, request.num_tokens - num_needed)
        end = [*request.token_ids[start:], *drafts]
        bans = (*self._never, *self._bad_words.bans(end[-num_needed:] if num_needed else ()))
        if request.num_output_tokens + len(drafts) < request.params.min_tokens:
            return (*bans, *self._endings)
        return bans

    def _seen(self, request: RequestState, drafts: Sequence[int]) -> list[Records]:
        history = self._history
        if history is None:
            return [NOTHING_SEEN] * (1 + len(drafts))
        for token_id in request.token_ids[self._num_counted :]:
            history.add(token_id)
        self._num_counted = request.num_tokens
        if not drafts:
            return [history.seen]
        seen = [history.seen.copy()]
        for draft in drafts:
            history.add(draft)
            seen.append(history.seen.copy())
        for draft in drafts:
            history.remove(draft)
        return seen


def mask_of(token_ids: Iterable[int], num_words: int) -> Int32s:
    """[num_words], with the bits of `token_ids` set; ids beyond it are left out."""
    bits = np.zeros(num_words * _WORD_BITS, np.uint8)
    bits[[token_id for token_id in token_ids if token_id < bits.size]] = 1
    return np.packbits(bits, bitorder="little").view(np.dtype("<i4")).astype(np.int32)


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )
