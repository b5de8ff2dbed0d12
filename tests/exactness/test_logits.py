"""Every logit of every position has the same bits, whatever steps computed it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import SequenceCache, forward_logits, forward_step
from qwen3_ray.testing_models import TINY_MODEL, engine_config, make_checkpoint
from tests.exactness.controls import torch_product, with_kernels, with_matrices
from tests.exactness.specs import RANDOM

LENGTHS = (1, 2, 33, 64, 71, 96)
CONTROL_CHUNKS = (1, 2, 3, 5, 7, 13, 40)


@dataclass(frozen=True)
class Case:
    """A model, its sequences, and all of their logits, each sequence by itself in one piece."""

    model: Qwen3ForCausalLM
    sequences: list[list[int]]
    logits: list[torch.Tensor]


def make_case(model: Qwen3ForCausalLM) -> Case:
    assert model.exact
    rng = random.Random(0)
    sequences = [rng.choices(range(model.config.vocab_size), k=length) for length in LENGTHS]
    return Case(model, sequences, [forward_logits(model, s) for s in sequences])


@pytest.fixture(scope="module", params=["demo", "head_dim 128"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "demo":
        path, shape = DEMO_MODEL_DIR, ModelConfig.from_dir(DEMO_MODEL_DIR)
    else:
        shape = replace(TINY_MODEL, head_dim=128, hidden_size=512, intermediate_size=768)
        path = make_checkpoint(tmp_path_factory.mktemp("model"), shape)
    return make_case(load_model(engine_config(path), shape, TPGroup.single()))


@RANDOM(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_any_interleaving_of_chunks_has_the_bits_of_the_whole(case: Case, seed: int) -> None:
    """Each step takes any number of rows of any of the sequences."""
    rng = random.Random(seed)
    cache = SequenceCache(case.model, LENGTHS)
    done = [0] * len(LENGTHS)
    while any(count < length for count, length in zip(done, LENGTHS, strict=True)):
        largest = rng.choice((1, 3, 16, 64))
        chunks = []
        for index, length in enumerate(LENGTHS):
            size = min(length - done[index], rng.randint(0, largest))
            if size > 0:
                chunks.append((index, done[index], size))
        if not chunks:
            continue
        logits = forward_step(case.model, cache, case.sequences, chunks)
        assert logits is not None
        row = 0
        for index, first, size in chunks:
            expected = case.logits[index][first : first + size]
            assert torch.equal(logits[row : row + size], expected), (index, first, size)
            done[index] += size
            row += size


def test_with_torchs_products_they_differ(case: Case) -> None:
    """The control: were all kernels exact, the test above would show nothing."""
    assert_chunks_differ(with_matrices(case.model, torch_product), case.sequences[-1])


def test_with_torchs_kernels_between_the_products_they_differ(case: Case) -> None:
    """The control of attention and of the small steps."""
    assert_chunks_differ(with_kernels(case.model, ReferenceKernels()), case.sequences[-1])


def assert_chunks_differ(model: Qwen3ForCausalLM, ids: list[int]) -> None:
    whole = forward_logits(model, ids)
    assert any(not torch.equal(forward_logits(model, ids, [n]), whole) for n in CONTROL_CHUNKS)
