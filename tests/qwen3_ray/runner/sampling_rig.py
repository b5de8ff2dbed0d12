"""Requests, steps and logits for tests of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.layers.kernels import KernelChoice
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context

Logits = NDArray[np.float32]

CPU = torch.device("cpu")
KERNELS: dict[str, KernelChoice] = {"kernel": "numba", "sorting": "reference"}
"""By what they do; both draw the same tokens."""
ALL_KERNELS: dict[str, KernelChoice] = {**KERNELS, "triton": "triton"}
"""Those that draw other tokens with the same probabilities, too."""


def make_sampler(way: str, num_valid_token_ids: int, eos: Sequence[int] = ()) -> Sampler:
    return Sampler(
        num_valid_token_ids=num_valid_token_ids,
        device=CPU,
        eos_token_ids=frozenset(eos),
        kernels=ALL_KERNELS[way],
    )


def make_request(context: Context) -> RequestState:
    """One that decodes: all but its last token are computed."""
    token_ids = [*context.prompt, *context.output]
    return RequestState(
        "request",
        token_ids,
        len(context.prompt),
        context.params,
        num_computed_tokens=len(token_ids) - 1,
        choice=context.choice,
    )


def sample(sampler: Sampler, logits: Logits, requests: Sequence[RequestState]) -> list[Sampled]:
    """What each request gets from its row; none has drafts."""
    step = Step(tuple(ScheduledRequest(request, 1) for request in requests))
    return sampler.sample(torch.from_numpy(logits), step)


def sample_one(sampler: Sampler, logits: Logits, context: Context) -> Sampled:
    (sampled,) = sample(sampler, logits[None], [make_request(context)])
    return sampled


def repeat(
    params: SamplingParams, count: int, output: Sequence[int] = (), choice: int = 0
) -> list[RequestState]:
    """The same request with `count` seeds from its own on, so that each draws its own number."""
    first = params.seed or 0
    return [
        make_request(Context(replace(params, seed=first + i), output=output, choice=choice))
        for i in range(count)
    ]


@st.composite
def logit_rows(draw: st.DrawFn, max_size: int = 700) -> Logits:
    """One row; a few blocks of the kernel, often with equals, sometimes with large numbers."""
    size = draw(st.integers(1, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(size=size) * draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 100.0]))
    step = draw(st.sampled_from([0.0, 0.5, 3.0]))
    if step:
        logits = np.round(logits / step) * step
    if draw(st.booleans()):
        logits[rng.integers(size)] *= draw(st.sampled_from([1e3, 1e30, -1e30, 3e38]))
    return np.clip(logits, -3.4e38, 3.4e38).astype(np.float32)
