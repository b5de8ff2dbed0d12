"""A prefix that many requests share is computed once, and none of them can tell."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import TINY_MODEL, make_checkpoint
from tests.exactness.rig import Arrival, Rig, Schedule, Spec, running
from tests.exactness.specs import assert_same, make_params

NUM_REQUESTS = 50
PREFIX_LEN = 2_000
MAX_MODEL_LEN = 2_048


def test_fifty_requests_compute_a_prefix_of_2000_tokens_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shape = replace(TINY_MODEL, max_position_embeddings=MAX_MODEL_LEN)
    model_dir = make_checkpoint(tmp_path_factory.mktemp("model"), shape)
    rng = random.Random(0)
    prefix, *tails = (
        tuple(rng.choices(range(1, shape.vocab_size), k=k)) for k in [PREFIX_LEN, *[9] * 50]
    )
    params = [p for p in make_params(shape.vocab_size, 8).values() if p.prompt_logprobs is None]
    specs = [Spec(prefix + tail, params[i % len(params)]) for i, tail in enumerate(tails)]
    arrivals = [Arrival(spec.request(str(i)), at_step=i // 10) for i, spec in enumerate(specs)]
    with running(model_dir, max_model_len=MAX_MODEL_LEN) as rig:
        answers, stats = rig.run(Schedule(), arrivals)
        num_prompt_tokens = sum(len(spec.prompt) for spec in specs)
        assert stats.num_prompt_tokens <= 0.05 * num_prompt_tokens
        assert stats.num_prefix_hits >= 0.95 * stats.num_prefix_queries
        for index in range(0, NUM_REQUESTS, 7):
            assert_same(answers[str(index)], rig.alone(specs[index]), specs[index].params)


def test_equal_blocks_after_different_ones_are_not_taken_for_each_other(tiny: Rig) -> None:
    size = tiny.info.block_size
    a, b, c, d = (tuple(range(first, first + size)) for first in (1, 50, 100, 150))
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0, logprobs=3)
    specs = [Spec((*prompt, 7), params) for prompt in (a + c, b + d, b + c, a + d, a + c + d)]
    arrivals = [Arrival(spec.request(str(i)), at_step=20 * i) for i, spec in enumerate(specs)]
    answers, stats = tiny.run(Schedule(), arrivals)
    assert stats.num_prefix_hits >= 4 * size
    for index, spec in enumerate(specs):
        assert_same(answers[str(index)], tiny.alone(spec), spec)
