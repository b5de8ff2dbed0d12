"""Drafts change the number of steps and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.tokenizer import find_tokenizer
from tests.exactness.rig import ALL, Answer, Arrival, Rig, Schedule, Spec
from tests.exactness.specs import KINDS, assert_same, make_forms, make_specs, make_specs_with_forms

NUM_OUTPUT_TOKENS = 40
MAX_DRAFTS = 4
TEXT = "Row, row, row your boat, gently down the stream. Merrily, merrily, life is but a dream.\n"


class Oracle:
    """Drafts what a request will get, with a wrong token here and there."""

    def __init__(self, texts: Sequence[Sequence[int]], vocab_size: int) -> None:
        self._texts = [list(text) for text in texts]
        self._vocab_size = vocab_size
        self._rng = random.Random(0)
        self.num_right = self.num_wrong = 0

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        num_known = len(token_ids)
        (text, *_) = [text for text in self._texts if text[:num_known] == token_ids]
        drafts = text[num_known : num_known + limit]
        for index in range(len(drafts)):
            if self._rng.random() < 0.3:
                drafts[index] = self._rng.randrange(self._vocab_size)
        return drafts

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        self.num_right += num_accepted
        self.num_wrong += num_drafts - num_accepted


def run(rig: Rig, specs: Sequence[Spec], oracle: Oracle) -> list[Answer]:
    """As `Engine` does it, with the oracle in the place of prompt lookup."""
    executor = rig.executor
    scheduler = Scheduler(
        kv=KVManager(num_blocks=executor.num_blocks, block_size=executor.block_size),
        max_num_seqs=8,
        max_num_batched_tokens=ALL,
        max_model_len=rig.info.max_model_len,
        eos_token_ids=rig.info.eos_token_ids,
        num_speculative_tokens=MAX_DRAFTS,
        make_lookup=lambda _: oracle,
    )
    answers = [Answer() for _ in specs]
    for index, spec in enumerate(specs):
        scheduler.add(spec.request(str(index)))
    while scheduler.has_unfinished:
        step = scheduler.schedule()
        for delta in scheduler.commit(step, executor.execute(step)):
            index = int(delta.request_id)
            answers[index] = answers[index].extended(delta)
        scheduler.check_integrity()
    return answers


@pytest.mark.parametrize("index", range(14), ids=KINDS[:14])
def test_right_and_wrong_drafts_leave_no_trace(tiny: Rig, index: int) -> None:
    specs = make_specs(tiny.info.vocab_size, NUM_OUTPUT_TOKENS)
    specs = [specs[index], specs[(index + 3) % 14]]
    truths = [tiny.alone(spec) for spec in specs]
    texts = [(*s.prompt, *truth.token_ids) for s, truth in zip(specs, truths, strict=True)]
    oracle = Oracle(texts, tiny.info.vocab_size)
    answers = run(tiny, specs, oracle)
    for spec, answer, truth in zip(specs, answers, truths, strict=True):
        assert_same(answer, truth, spec)
    assert oracle.num_right >= 5
    assert oracle.num_wrong >= 5


@pytest.mark.parametrize("index", range(4), ids=list(make_forms(1)))
def test_nor_do_drafts_of_an_output_of_a_form(demo: Rig, index: int) -> None:
    """A draft that the form forbids, or that follows its end, is never taken."""
    spec = make_specs_with_forms(demo.info.vocab_size, NUM_OUTPUT_TOKENS)[len(KINDS) + index]
    truth = demo.alone(spec)
    oracle = Oracle([(*spec.prompt, *truth.token_ids)], demo.info.vocab_size)
    (answer,) = run(demo, [spec], oracle)
    assert_same(answer, truth, spec)


def test_a_repetitive_text_takes_fewer_steps_and_stays_what_it_is(demo: Rig) -> None:
    tokenizer = find_tokenizer(DEMO_MODEL_DIR)
    assert tokenizer is not None
    params = SamplingParams(temperature=0.0, max_tokens=80, ignore_eos=True, seed=0, logprobs=2)
    spec = Spec(tuple(tokenizer.encode(TEXT * 3)), params)
    num_steps = {}
    for num_drafts in (0, MAX_DRAFTS):
        schedule = replace(Schedule(), num_speculative_tokens=num_drafts)
        answers, stats = demo.run(schedule, [Arrival(spec.request("x"))])
        assert_same(answers["x"], demo.alone(spec), spec)
        num_steps[num_drafts] = stats.num_steps
    assert num_steps[0] >= 1.5 * num_steps[MAX_DRAFTS]
