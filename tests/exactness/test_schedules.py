"""What a request gets depends on the request alone: every schedule gives it the same bits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.testing_models import make_checkpoint
from tests.exactness.controls import torch_product, with_matrices
from tests.exactness.rig import Arrival, Rig, Schedule, running
from tests.exactness.specs import (
    BATCHES,
    CHUNKS,
    KINDS,
    RANDOM,
    assert_exact,
    assert_same,
    examples,
    make_forms,
    make_specs,
    make_specs_with_forms,
)

NUM_OUTPUT_TOKENS = 40


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_batch_by_chunks_gives_each_what_it_gets_alone(tiny: Rig, batch: int, chunk: int) -> None:
    specs = make_specs(tiny.info.vocab_size, NUM_OUTPUT_TOKENS)
    if chunk == 1:
        batch = min(batch, 5)
    chosen = [specs[(batch + i) % len(specs)] for i in range(batch)]
    arrivals = [Arrival(spec.request(str(i))) for i, spec in enumerate(chosen)]
    answers, _ = tiny.run(Schedule(max_num_batched_tokens=chunk), arrivals)
    for index, spec in enumerate(chosen):
        assert_same(answers[str(index)], tiny.alone(spec), spec)


def test_keys_and_values_in_halves_are_as_exact_and_tell_themselves_apart(
    halves: Rig, tiny: Rig
) -> None:
    specs = make_specs(halves.info.vocab_size, NUM_OUTPUT_TOKENS)
    arrivals = [Arrival(spec.request(str(i)), at_step=i) for i, spec in enumerate(specs)]
    answers, _ = halves.run(Schedule(max_num_batched_tokens=40), arrivals)
    for index, spec in enumerate(specs):
        assert_same(answers[str(index)], halves.alone(spec), spec)
    assert any(halves.alone(spec) != tiny.alone(spec) for spec in specs)
    assert halves.info.numerics_fingerprint != tiny.info.numerics_fingerprint


def test_preempted_requests_give_what_they_give_alone(tiny: Rig) -> None:
    specs = make_specs(tiny.info.vocab_size, NUM_OUTPUT_TOKENS)
    arrivals = [Arrival(spec.request(str(i)), at_step=i) for i, spec in enumerate(specs)]
    answers, stats = tiny.run(Schedule(max_num_batched_tokens=40, num_blocks=14), arrivals)
    assert stats.num_preemptions >= 3
    for index, spec in enumerate(specs):
        assert_same(answers[str(index)], tiny.alone(spec), spec)


def test_cached_prefixes_give_what_computed_ones_give(tiny: Rig) -> None:
    specs = make_specs(tiny.info.vocab_size, NUM_OUTPUT_TOKENS)
    arrivals = [
        Arrival(spec.request(f"{i} {again}"), at_step=100 * again)
        for i, spec in enumerate(specs)
        for again in range(2)
    ]
    answers, stats = tiny.run(Schedule(), arrivals)
    assert stats.num_prefix_hits >= 0.4 * stats.num_prefix_queries
    for index, spec in enumerate(specs):
        for again in range(2):
            assert_same(answers[f"{index} {again}"], tiny.alone(spec), spec)


@pytest.mark.parametrize("index", range(15), ids=KINDS[:15])
def test_a_request_is_resumed_at_each_of_64_positions(tiny: Rig, index: int) -> None:
    spec = make_specs(tiny.info.vocab_size, 64)[index]
    truth = tiny.alone(spec)
    num_tokens = len(truth.token_ids)
    assert num_tokens == spec.params.max_tokens or not spec.params.ignore_eos
    arrivals = [
        Arrival(spec.request(str(made), truth.token_ids[:made]), at_step=made // 8)
        for made in range(num_tokens)
    ]
    answers, _ = tiny.run(Schedule(max_num_batched_tokens=64, max_num_seqs=16), arrivals)
    for made in range(num_tokens):
        assert_same(answers[str(made)], truth.after(made), (spec, made))


@pytest.mark.parametrize("index", range(4), ids=list(make_forms(1)))
def test_an_output_of_a_form_is_resumed_at_each_position(demo: Rig, index: int) -> None:
    spec = make_specs_with_forms(demo.info.vocab_size, NUM_OUTPUT_TOKENS)[len(KINDS) + index]
    truth = demo.alone(spec)
    assert truth.token_ids
    arrivals = [
        Arrival(spec.request(str(made), truth.token_ids[:made]), at_step=made // 8)
        for made in range(len(truth.token_ids))
    ]
    answers, _ = demo.run(Schedule(max_num_batched_tokens=64, max_num_seqs=16), arrivals)
    for made in range(len(truth.token_ids)):
        assert_same(answers[str(made)], truth.after(made), (spec, made))


def test_with_torchs_products_answers_differ(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The control: were the engine exact without its own products, the tests would show nothing."""
    model_dir = make_checkpoint(tmp_path_factory.mktemp("tiny"))
    with running(model_dir, block_size=16) as rig:
        assert isinstance(rig.executor, GroupExecutor)
        runner = rig.executor._runner
        runner._model = with_matrices(runner._model, torch_product)
        specs = make_specs(rig.info.vocab_size, NUM_OUTPUT_TOKENS)
        arrivals = [Arrival(spec.request(str(i)), at_step=i) for i, spec in enumerate(specs)]
        answers, _ = rig.run(Schedule(max_num_batched_tokens=40), arrivals)
        differ = [i for i, spec in enumerate(specs) if answers[str(i)] != rig.alone(spec)]
        assert len(differ) >= 3


@RANDOM(max_examples=30)
@given(data=st.data())
def test_any_schedule_gives_each_what_it_gets_alone(tiny: Rig, data: st.DataObject) -> None:
    specs = make_specs(tiny.info.vocab_size, NUM_OUTPUT_TOKENS)
    assert_exact(tiny, data.draw(examples(specs, tiny)))


@RANDOM(max_examples=6)
@given(data=st.data())
def test_any_schedule_of_a_trained_model_does(demo: Rig, data: st.DataObject) -> None:
    specs = make_specs_with_forms(demo.info.vocab_size, NUM_OUTPUT_TOKENS)
    assert_exact(demo, data.draw(examples(specs, demo)))


@RANDOM(max_examples=10)
@given(data=st.data())
def test_any_schedule_of_a_mixture_of_experts_does(experts: Rig, data: st.DataObject) -> None:
    specs = make_specs(experts.info.vocab_size, NUM_OUTPUT_TOKENS)
    assert_exact(experts, data.draw(examples(specs, experts)))
