"""Requests of every kind, and random schedules of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from tests.exactness.rig import ALL, MAX_MODEL_LEN, Answer, Arrival, Rig, Schedule, Spec

CHUNKS = (1, 7, 16, 64, ALL)
BATCHES = (1, 2, 5, 17)
PROMPT_LENS = (1, 7, 31, 32, 33, 64, 70, 101)
"""Around the borders of blocks."""
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2},
            "size": {"type": "integer"},
        },
        "required": ["name", "tags", "size"],
        "additionalProperties": False,
    }
)
RANDOM = partial(
    settings,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def make_specs(vocab_size: int, num_output_tokens: int) -> list[Spec]:
    """One of each kind of sampling, in the order of `KINDS`."""
    return _specs(vocab_size, list(make_params(vocab_size, num_output_tokens).values()))


def make_specs_with_forms(vocab_size: int, num_output_tokens: int) -> list[Spec]:
    """The same and outputs of given forms, for models that have a tokenizer."""
    kinds = list(make_params(vocab_size, num_output_tokens).values())
    return _specs(vocab_size, [*kinds, *make_forms(num_output_tokens).values()])


def _specs(vocab_size: int, kinds: Sequence[SamplingParams]) -> list[Spec]:
    """Deterministic; prompts begin alike in part, repeat themselves, or are random."""
    rng = random.Random(vocab_size)
    shared = [rng.randrange(1, vocab_size) for _ in range(64)]
    specs = []
    for index, params in enumerate(kinds):
        length = PROMPT_LENS[index % len(PROMPT_LENS)]
        prompt = [rng.randrange(1, vocab_size) for _ in range(length)]
        if index % 3 == 1:
            prompt = shared[: 32 * (1 + index % 2)] + prompt[:40]
        if index % 3 == 2:
            prompt = (prompt[:5] * length)[:length]
        assert len(prompt) + (params.max_tokens or 0) <= MAX_MODEL_LEN
        specs.append(Spec(tuple(prompt), params))
    return specs


def make_params(vocab_size: int, num_output_tokens: int) -> dict[str, SamplingParams]:
    """One of each kind of sampling."""
    greedy = SamplingParams(temperature=0.0, max_tokens=num_output_tokens, ignore_eos=True, seed=0)
    drawn = replace(greedy, temperature=1.0)
    return {
        "greedy": greedy,
        "random": replace(drawn, seed=1),
        "greedy, logprobs": replace(greedy, logprobs=3, prompt_logprobs=2),
        "cool, top_k": replace(drawn, seed=2, temperature=0.6, top_k=7, logprobs=0),
        "top_p": replace(drawn, seed=3, top_p=0.8),
        "random, logprobs": replace(drawn, seed=-4, logprobs=20, prompt_logprobs=0),
        "greedy, penalties": replace(
            greedy,
            presence_penalty=0.7,
            frequency_penalty=0.3,
            repetition_penalty=1.2,
            logprobs=1,
        ),
        "random, penalties": replace(
            drawn, seed=5, presence_penalty=-0.5, frequency_penalty=1.5, logprobs=2
        ),
        "min_p": replace(drawn, seed=6, min_p=0.05, top_p=0.95),
        "bias": replace(drawn, seed=7, logit_bias={3: 4.5, 5: -100.0}, logprobs=1),
        "allowed": replace(
            drawn, seed=8, allowed_token_ids=tuple(range(0, vocab_size, 2)), logprobs=1
        ),
        "bad words": replace(
            drawn, seed=9, bad_words_token_ids=((3,), *((i, i + 1) for i in range(50)))
        ),
        "ends": replace(drawn, seed=10, ignore_eos=False, min_tokens=4, stop_token_ids=(5, 9, 11)),
        "hot, everything": replace(
            drawn,
            seed=2**63 - 1,
            temperature=1.7,
            top_k=50,
            top_p=0.95,
            min_p=0.001,
            repetition_penalty=1.1,
            logprobs=5,
            prompt_logprobs=5,
        ),
        "short": replace(greedy, max_tokens=1, logprobs=1),
        "prompt only": replace(greedy, max_tokens=0, prompt_logprobs=1),
    }


def make_forms(num_output_tokens: int) -> dict[str, SamplingParams]:
    """Forms that an output may need many tokens for, and forms that end early."""
    greedy = SamplingParams(temperature=0.0, max_tokens=num_output_tokens, seed=0, logprobs=2)
    drawn = replace(greedy, temperature=1.0, seed=20)
    schema = StructuredOutputs(json=SCHEMA)
    return {
        "schema, greedy": replace(greedy, structured_outputs=schema),
        "schema, random": replace(drawn, structured_outputs=schema, repetition_penalty=1.1),
        "regex": replace(drawn, structured_outputs=StructuredOutputs(regex="([a-z]{1,6} ){2,9}x")),
        "choice": replace(drawn, structured_outputs=StructuredOutputs(choice=("a", "abc", "xyz"))),
    }


KINDS = tuple(make_params(vocab_size=64, num_output_tokens=4))


@dataclass(frozen=True)
class Example:
    """A schedule, and which requests come when."""

    schedule: Schedule
    arrivals: tuple[Arrival, ...]
    truths: dict[str, Answer]
    """What each request must get, by its id."""


@st.composite
def examples(draw: st.DrawFn, specs: Sequence[Spec], rig: Rig) -> Example:
    """Any batch of `specs` under any schedule; some are resumed, some are aborted."""
    chunk = draw(st.sampled_from(CHUNKS))
    batch = draw(st.sampled_from(BATCHES if chunk > 1 else BATCHES[:2]))
    chosen = draw(st.lists(st.sampled_from(specs), min_size=batch, max_size=batch))
    arrivals, truths = [], {}
    for index, spec in enumerate(chosen):
        truth = rig.alone(spec)
        last_made = max(0, len(truth.token_ids) - 1)
        num_made = draw(st.one_of(st.just(0), st.integers(0, last_made)))
        at_step = draw(st.integers(0, 12))
        abort_at = draw(st.one_of(st.none(), st.none(), st.integers(at_step, at_step + 30)))
        request = spec.request(str(index), truth.token_ids[:num_made])
        arrivals.append(Arrival(request, at_step, abort_at))
        truths[str(index)] = truth.after(num_made)
    size, total = rig.info.block_size, rig.executor.num_blocks
    fewest = max(-(-(len(s.prompt) + (s.params.max_tokens or 0)) // size) + 1 for s in chosen)
    schedule = Schedule(
        max_num_batched_tokens=chunk,
        max_num_seqs=draw(st.sampled_from((1, 3, 64))),
        num_blocks=draw(st.sampled_from((fewest, fewest + 3, total))),
        enable_prefix_caching=draw(st.booleans()),
        num_speculative_tokens=draw(st.sampled_from((0, 1, 4))),
    )
    return Example(schedule, tuple(arrivals), truths)


def assert_exact(rig: Rig, example: Example) -> None:
    """Every request gets what it gets alone, or its beginning if it was aborted."""
    answers, _ = rig.run(example.schedule, example.arrivals)
    for request_id, truth in example.truths.items():
        assert_same(answers[request_id], truth, example)


def assert_same(answer: Answer, truth: Answer, what: object) -> None:
    """Equal, or the beginning of it where the request was aborted."""
    if answer.finish_reason is None:
        truth = Answer(
            truth.token_ids[: len(answer.token_ids)],
            truth.logprobs[: len(answer.logprobs)],
            truth.prompt_logprobs[: len(answer.prompt_logprobs)],
        )
    assert answer == truth, what
