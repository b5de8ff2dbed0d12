"""The tokens of every request in a step, as a function of its logits, parameters and history."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.errors import RequestError
from qwen3_ray.layers.kernels import KernelChoice
from qwen3_ray.runner.constraints import Constraints, has_constraints
from qwen3_ray.runner.grammar_masks import GrammarMasks, Grammars
from qwen3_ray.runner.item_rows import ItemRows
from qwen3_ray.runner.sampling_rows import (
    NO_EDITS,
    RowEdits,
    SamplingRowsBuilder,
    packed_row,
)
from qwen3_ray.runner.sampling_way import select_sampling

_WORD_BITS = 32


@dataclass(slots=True)
class _Kept:
    """What of a request is the same in all steps."""

    row: bytes
    """See `packed_row`."""
    is_constrained: bool
    constraints: Constraints | None = None
    """None before its first token, and where they cannot be made."""


class Sampler:
    """Samples ids below `num_valid_token_ids`; no request's result depends on another one.

    Keeps what it needs of a request for as long as its state lives. Used by one thread.
    """

    def __init__(
        self,
        *,
        num_valid_token_ids: int,
        device: torch.device,
        eos_token_ids: frozenset[int] = frozenset(),
        grammars: Grammars | None = None,
        kernels: KernelChoice = "auto",
    ) -> None:
        """`kernels`: see `select_sampling`; `device` is that of the logits."""
        self._num_valid_token_ids = num_valid_token_ids
        self._eos_token_ids = eos_token_ids
        self._grammars = grammars
        self._kept: WeakKeyDictionary[RequestState, _Kept] = WeakKeyDictionary()
        self._way = select_sampling(kernels, device)

    @property
    def method(self) -> str:
        """Names the way of sampling in the numerics fingerprint."""
        return self._way.method

    def sample(self, logits: torch.Tensor, step: Step) -> list[Sampled]:
        """What each request of `step` gets, in its order.

        A draft is right where it is what its row samples: the tokens are those of a run without.

        Args:
            logits: [at least the step's logit rows, vocab_size], float32; further rows are
                padding. Never changed.
            step: its items' logit rows follow each other (`ScheduledRequest.num_logits`).
        """
        builder = SamplingRowsBuilder(num_words=-(-logits.shape[1] // _WORD_BITS))
        items = [self._add_rows(item, builder) for item in step.scheduled]
        rows = builder.build()
        outcome = self._way.sample(logits, self._num_valid_token_ids, rows)
        token_ids: list[int] = outcome.token_ids.tolist()
        return [item.result(outcome, token_ids) for item in items]

    def _add_rows(self, item: ScheduledRequest, builder: SamplingRowsBuilder) -> ItemRows:
        """Add one row for each of the item's logits."""
        request, start = item.request, len(builder)
        if request.params.prompt_logprobs is not None:
            for position in item.prompt_logprob_rows:
                builder.score(request.token_ids[position + 1], request.params.prompt_logprobs)
        num_scored, num_sampled = len(builder) - start, item.num_sampled_rows
        if num_sampled == 0:
            return ItemRows(item, start, num_scored, 0, None, None)
        kept = self._kept.get(request)
        if kept is None:
            kept = self._kept[request] = _Kept(packed_row(request), has_constraints(request.params))
        problem = None
        if kept.is_constrained:
            problem = self._add_edited(item, kept, builder)
        else:
            for position in range(request.num_tokens, request.num_tokens + num_sampled):
                builder.sample(kept.row, position, NO_EDITS)
        return ItemRows(item, start, num_scored, num_sampled, problem, kept.constraints)

    def _add_edited(
        self, item: ScheduledRequest, kept: _Kept, builder: SamplingRowsBuilder
    ) -> str | None:
        """Add the rows that sample for a request with constraints; why nothing can be sampled."""
        request, problem = item.request, None
        edits: list[RowEdits] = []
        try:
            if kept.constraints is None:
                kept.constraints = self._make_constraints(request, builder.num_words)
            edits = kept.constraints.edits(request, request.draft_token_ids[: item.num_drafts])
        except RequestError as error:
            problem = str(error)
        for position, row_edits in enumerate(edits, request.num_tokens):
            builder.sample(kept.row, position, row_edits)
        for _ in range(item.num_sampled_rows - len(edits)):
            builder.skip()
        return problem

    def _make_constraints(self, request: RequestState, num_words: int) -> Constraints:
        """Raises RequestError: the output has a form that cannot be followed."""
        return Constraints(
            request,
            eos_token_ids=self._eos_token_ids,
            grammar=self._grammar_masks(request, num_words),
            num_words=num_words,
        )

    def _grammar_masks(self, request: RequestState, num_words: int) -> GrammarMasks | None:
        spec = request.params.structured_outputs
        if spec is None:
            return None
        if self._grammars is None:
            raise RequestError("structured_outputs", "need a model with a tokenizer")
        matcher = self._grammars.compile(spec).matcher()
        return GrammarMasks(matcher, self._eos_token_ids, num_words)
