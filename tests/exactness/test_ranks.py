"""Several ranks keep the bits too: two sum in any order, more in rank order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.testing_models import TINY_MODEL, make_checkpoint, run_ranks
from tests.exactness.rig import ALL, Arrival, Rig, Schedule, running
from tests.exactness.specs import (
    RANDOM,
    assert_exact,
    assert_same,
    examples,
    make_specs,
    make_specs_with_forms,
)

NUM_OUTPUT_TOKENS = 16
SHAPE_OF_3 = replace(TINY_MODEL, num_heads=6, num_kv_heads=3, intermediate_size=96, hidden_size=192)


@pytest.fixture(scope="module")
def pair() -> Iterator[Rig]:
    with running(DEMO_MODEL_DIR, tensor_parallel_size=2) as rig:
        yield rig


@RANDOM(max_examples=5)
@given(data=st.data())
def test_two_ranks_give_each_what_it_gets_alone(pair: Rig, data: st.DataObject) -> None:
    specs = make_specs_with_forms(pair.info.vocab_size, NUM_OUTPUT_TOKENS)
    assert_exact(pair, data.draw(examples(specs, pair)))


@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks_do(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = SHAPE_OF_3 if size == 3 else TINY_MODEL
    model_dir = make_checkpoint(tmp_path_factory.mktemp("model"), shape)
    with running(model_dir, tensor_parallel_size=size) as rig:
        assert rig.info.exact
        specs = make_specs(rig.info.vocab_size, NUM_OUTPUT_TOKENS)
        for chunk, batch in ((7, 5), (64, 17), (ALL, 2)):
            chosen = [specs[(batch + i) % len(specs)] for i in range(batch)]
            arrivals = [Arrival(spec.request(str(i)), at_step=i) for i, spec in enumerate(chosen)]
            answers, _ = rig.run(Schedule(max_num_batched_tokens=chunk), arrivals)
            for index, spec in enumerate(chosen):
                assert_same(answers[str(index)], rig.alone(spec), spec)


@pytest.mark.parametrize("size", [3, 4])
def test_the_backends_own_sum_would_not(size: int) -> None:
    """The control: gloo's ring adds in an order that depends on the tensor's size."""

    def sums(tp: TPGroup, num_rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(tp.rank)
        x = torch.randn(64, 96, generator=generator)[:num_rows].contiguous()
        return tp.all_reduce(x)

    def is_invariant(tp: TPGroup) -> bool:
        whole = sums(tp, 64)
        return all(torch.equal(sums(tp, n), whole[:n]) for n in (1, 2, 3, 5, 7, 17, 33))

    assert all(run_ranks(size, is_invariant))
    assert not all(run_ranks(size, is_invariant, exact=False))
