"""Sampling in plain Python, from the definition of each parameter: one row, lists and sorting."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from qwen3_ray.request import TokenLogprobs
from qwen3_ray.runner import philox
from qwen3_ray.sampling_params import SamplingParams

CLOSE = 1e-6
"""Where sums come this near to a border, the order of additions may decide, or float32 weights."""
TOO_CLOSE = -1
"""Stands for a token that cannot be told."""


@dataclass
class Context:
    """What a token follows."""

    params: SamplingParams
    prompt: Sequence[int] = (0,)
    output: Sequence[int] = ()
    eos: Collection[int] = ()
    choice: int = 0


@dataclass
class Kept:
    """The tokens that may be drawn, with their probabilities by id."""

    probabilities: dict[int, float] = field(default_factory=dict)
    is_close: bool = False


def float32(x: float) -> float:
    return float(np.float32(min(max(x, -3.4028234663852886e38), 3.4028234663852886e38)))


def edited(logits: Sequence[float], context: Context) -> dict[int, float]:
    """Logits by id of the tokens that are allowed."""
    params, output = context.params, list(context.output)
    left = dict(enumerate(logits))
    if params.allowed_token_ids is not None:
        left = {i: x for i, x in left.items() if i in params.allowed_token_ids}
    for word in params.bad_words_token_ids:
        *beginning, last = word
        if output[len(output) - len(beginning) :] == beginning:
            left.pop(last, None)
    if len(output) < params.min_tokens:
        left = {i: x for i, x in left.items() if i not in {*context.eos, *params.stop_token_ids}}
    for i, bias in params.logit_bias.items():
        if i in left:
            left[i] = float32(left[i] + bias)
    for i in left:
        count = output.count(i)
        if count or i in context.prompt:
            penalty = params.repetition_penalty
            left[i] = left[i] / penalty if left[i] > 0 else left[i] * penalty
        left[i] -= params.frequency_penalty * count
        left[i] -= params.presence_penalty * (count > 0)
        left[i] = float32(left[i])
    return left


def keep(logits: dict[int, float], params: SamplingParams) -> Kept:
    """What min_p, top_k and top_p leave, at a temperature above 0."""
    largest = max(logits.values())
    weights = {i: math.exp((x - largest) / params.temperature) for i, x in logits.items()}
    ordered = sorted(logits, key=lambda i: (-logits[i], i))
    is_close = params.min_p > 0 and any(0 < abs(weights[i] - params.min_p) < CLOSE for i in ordered)
    ordered = [i for i in ordered if weights[i] >= params.min_p]
    if params.top_k > 0:
        ordered = ordered[: params.top_k]
    if params.top_p < 1:
        target = params.top_p * math.fsum(weights[i] for i in ordered)
        running, nucleus = 0.0, []
        for i in ordered:
            if running >= target:
                break
            nucleus.append(i)
            running += weights[i]
            is_close |= abs(running - target) < CLOSE
        ordered = nucleus
    total = math.fsum(weights[i] for i in ordered)
    return Kept({i: weights[i] / total for i in sorted(ordered)}, is_close)


def next_token(logits: Sequence[float], context: Context) -> int | None:
    """The token that follows; None if no token may, and `TOO_CLOSE` where that is so."""
    left, params = edited(logits, context), context.params
    if not left:
        return None
    if params.temperature == 0:
        return min(left, key=lambda i: (-left[i], i))
    kept = keep(left, params)
    position = len(context.prompt) + len(context.output)
    share = philox.uniform(params.seed or 0, position, context.choice)
    running = 0.0
    for i, probability in kept.probabilities.items():
        running += probability
        if abs(running - share) < CLOSE or kept.is_close:
            return TOO_CLOSE
        if running > share:
            return i
    return TOO_CLOSE


def logprobs(logits: Sequence[float], token_id: int, num_top: int) -> TokenLogprobs:
    """How likely `token_id` is in the model's own distribution."""
    largest = max(logits)
    log_total = largest + math.log(math.fsum(math.exp(x - largest) for x in logits))
    values = [float32(x - log_total) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    return TokenLogprobs(
        token_id=token_id,
        logprob=values[token_id],
        rank=1 + order.index(token_id),
        top=tuple((i, values[i]) for i in order[:num_top]),
    )
