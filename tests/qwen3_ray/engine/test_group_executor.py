"""The executor of the ranks: what it tells the others, and what it compiles before it serves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.control import Kind, StepArrays, StepControl
from qwen3_ray.layers.row_plan import RowPlan
from qwen3_ray.runner.input_batch import build
from qwen3_ray.sampling_params import SamplingParams

BLOCK_SIZE = 4
PLAN = RowPlan(safe_counts=(), granule=6, exact=True)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Prefills that want prompt logprobs and decodes with drafts: many logit rows of a request."""
    items = []
    for index in range(draw(st.integers(1, 6))):
        length, num_drafts = draw(st.integers(1, 20)), draw(st.integers(0, 4))
        request = RequestState(
            str(index),
            list(range(length)),
            length,
            SamplingParams(prompt_logprobs=draw(st.sampled_from((None, 2)))),
            block_ids=list(range(100 * index, 100 * index + 7)),
            draft_token_ids=[7] * num_drafts,
        )
        items.append(ScheduledRequest(request, length + num_drafts, num_drafts))
    return Step(tuple(items))


@settings(max_examples=30, deadline=None)
@given(frames=st.lists(steps(), min_size=1, max_size=3))
def test_other_ranks_get_every_row_of_steps_with_drafts_and_prompt_logprobs(
    frames: list[Step],
) -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        follower = pool.submit(StepControl.rendezvous, store, 1, 2, timeout_s=10)
        leader = StepControl.rendezvous(store, 0, 2, timeout_s=10)
        for step in frames:
            received = pool.submit(follower.result().receive)
            sent = build(step, BLOCK_SIZE, PLAN)
            leader.send(Kind.STEP, sent)
            kind, got = received.result()
            assert (kind, got and got.num_logits) == (Kind.STEP, sent.num_logits)
            assert sent.num_logits >= sum(item.num_logits for item in step.scheduled)
            for name in StepArrays.__slots__:
                np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))
