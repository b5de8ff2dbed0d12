"""Steps whose successor is queued before their ids are read, so that the device never waits.

A step that is asked for may be under way already. What of it is under way is taken from there, the
rest is computed beside it; then the next step is queued on the assumption that all its requests go
on by one token, and only then does the host wait for ids. Planning stays as it was: `Engine` asks
for a step, gets its results, and commits them.

What was assumed wrongly is dropped, and has done no harm. A step ahead writes one key and value
for each request, at the first position that the request has not computed. The block of that
position is the request's own and in no prefix cache, since it is not full. Whoever owns it next
writes to it in a later piece of work of the same stream, before reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.runner.device_step import DecodeRow
from qwen3_ray.runner.item_rows import simple_result
from qwen3_ray.runner.sampled_ring import Launch

NUM_LOOKAHEAD_TOKENS = 1
"""For which the scheduler should give requests room beyond their step's tokens."""


class Graphs(Protocol):
    """`runner.cuda_graphs.GraphRunner`."""

    def launch(self, items: Sequence[ScheduledRequest]) -> Launch | None:
        """Queue a step; None if it cannot be queued."""

    def launch_decodes(self, rows: Sequence[DecodeRow]) -> Launch:
        """Queue a step of decodes of requests that were queued before."""


class RunAhead:
    """Executes steps as `Executor.execute` does.

    Args:
        compute: executes what `graphs` cannot, in the order of the device's work, and waits for it.
    """

    def __init__(
        self, graphs: Graphs, compute: Callable[[Step], list[Sampled]], *, block_size: int
    ) -> None:
        self._graphs = graphs
        self._compute = compute
        self._block_size = block_size
        self._ahead: Launch | None = None

    def execute(self, step: Step) -> list[Sampled]:
        """See `Executor`."""
        ahead, self._ahead = self._ahead, None
        launches: dict[RequestState, Launch] = {}
        rest = []
        for item in step.scheduled:
            if ahead is not None and self._is_under_way(item, ahead):
                launches[item.request] = ahead
            else:
                rest.append(item)
        computed: dict[RequestState, Sampled] = {}
        if rest:
            beside = self._graphs.launch(rest)
            requests = [item.request for item in rest]
            if beside is None:
                results = self._compute(Step(tuple(rest)))
                computed = dict(zip(requests, results, strict=True))
            else:
                launches |= dict.fromkeys(requests, beside)
        if not computed:
            self._ahead = self._launch_ahead(step, launches)
        return self._results(step, launches, computed)

    def finish(self) -> None:
        """Wait for what is under way: other ranks compute their parts of it with this one."""
        if self._ahead is not None:
            self._ahead.token_ids()

    def _is_under_way(self, item: ScheduledRequest, ahead: Launch) -> bool:
        """Whether `ahead` computes just what `item` wants.

        A request may have lost its blocks meanwhile and have got others: then it begins anew, or
        goes on where its last token was computed, in a block that `ahead` did not write to.
        """
        request, row = item.request, ahead.rows.get(item.request)
        return (
            row is not None
            and item.num_new_tokens == 1
            and item.num_drafts == 0
            and request.num_computed_tokens == row.position == request.num_tokens - 1
            and request.block_ids[row.position // self._block_size] == row.block_id
        )

    def _launch_ahead(self, step: Step, launches: dict[RequestState, Launch]) -> Launch | None:
        """Queue the step after `step`, if it is known but for the ids that `step` samples.

        It is not if a prompt goes on, or a request has no block for its next token. Of requests
        that end, those are left out whose length is why.
        """
        rows = []
        for item in step.scheduled:
            request = item.request
            position = request.num_computed_tokens + item.num_new_tokens
            if not item.samples or position >= len(request.block_ids) * self._block_size:
                return None
            max_tokens = request.params.max_tokens
            if max_tokens is None or request.num_output_tokens + 1 < max_tokens:
                rows.append(DecodeRow(request, position, launches[request].source(request)))
        return self._graphs.launch_decodes(rows) if rows else None

    def _results(
        self,
        step: Step,
        launches: dict[RequestState, Launch],
        computed: dict[RequestState, Sampled],
    ) -> list[Sampled]:
        """Wait for ids, in the order of the step."""
        ids = {launch: launch.token_ids() for launch in dict.fromkeys(launches.values())}
        results = []
        for item in step.scheduled:
            request = item.request
            launch = launches.get(request)
            if launch is None:
                results.append(computed[request])
            elif item.samples:
                results.append(simple_result(ids[launch][launch.rows[request].row]))
            else:
                results.append(Sampled())
        return results
