"""A row's logits have the same bits whatever is computed beside it and however it is chunked."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.kernels import ReferenceKernels
from qwen3_ray.layers.linear import Matrix
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import run_ranks
from tests.exactness.controls import torch_product, with_kernels, with_matrices
from tests.qwen3_ray.model.helpers import Checkpoint, batched_logits, load, random_ids

SHAPES = ["demo", "wide experts"]
NUM_TOKENS = 70
CHUNK_SIZES = [1, 7, 16, 64]
BATCH_SIZES = [2, 5, 17]


class Case(NamedTuple):
    model: Qwen3ForCausalLM
    ids: list[int]
    logits: torch.Tensor
    """Of `ids` by themselves, in one piece."""


@pytest.fixture(scope="module", autouse=True)
def num_threads() -> None:
    """As many as the machine has: bits must not depend on them either."""


@pytest.fixture(
    scope="module",
    params=[(shape, dtype) for shape in SHAPES for dtype in ("auto", "float32")],
    ids="-".join,
)
def case(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Case:
    """Products of halves and of floats."""
    shape, dtype = request.param
    model_dir = checkpoint(shape, "bfloat16")
    model, ids = load(model_dir, dtype=dtype), random_ids(model_dir, NUM_TOKENS)
    assert model.exact
    return Case(model, ids, forward_logits(model, ids))


@pytest.mark.parametrize("chunk", CHUNK_SIZES)
def test_chunks_have_the_bits_of_the_whole(chunk: int, case: Case) -> None:
    assert torch.equal(forward_logits(case.model, case.ids, [chunk]), case.logits)


@pytest.mark.parametrize("batch", BATCH_SIZES)
def test_a_batch_has_the_bits_of_each_alone(batch: int, case: Case) -> None:
    others = [case.ids[i : i + 3 * i + 2] for i in range(batch - 1)]
    for chunk in (1, 13):
        together = batched_logits(case.model, [*others, case.ids], chunk)
        assert torch.equal(together[-1], case.logits)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_keep_the_bits(shape: str, size: int, checkpoint: Checkpoint) -> None:
    model_dir = checkpoint(shape, "bfloat16")
    ids = random_ids(model_dir, 40)

    def run(tp: TPGroup) -> list[torch.Tensor]:
        model = load(model_dir, tp)
        assert model.exact
        return [forward_logits(model, ids, chunks) for chunks in (None, [13, 1], [7])]

    whole, *chunked = run_ranks(size, run)[0]
    assert len(whole) == len(ids)
    assert all(torch.equal(logits, whole) for logits in chunked)


def test_with_torchs_products_bits_differ(case: Case) -> None:
    """The control: were all kernels exact, the tests above would show nothing."""
    control = with_matrices(case.model, torch_product)
    whole = forward_logits(control, case.ids)
    torch.testing.assert_close(whole, case.logits, rtol=1e-3, atol=1e-3)
    assert any(
        not torch.equal(forward_logits(control, case.ids, [chunk]), whole) for chunk in (1, 2, 7)
    )


def test_with_torchs_kernels_between_the_products_bits_differ(case: Case) -> None:
    """The control of attention and of the small steps."""
    control = with_kernels(case.model, ReferenceKernels())
    whole = forward_logits(control, case.ids)
    torch.testing.assert_close(whole, case.logits, rtol=1e-3, atol=1e-3)
    assert any(
        not torch.equal(forward_logits(control, case.ids, [chunk]), whole) for chunk in (1, 2, 7)
    )


def test_a_model_is_exact_only_if_all_of_its_matrices_are(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("experts and a dense layer", "bfloat16"))
    assert model.exact
    shapes = {(matrix.out_features, matrix.in_features) for matrix in model.matrices()}
    assert {(8, 96), (2 * 48, 96), (96, 48), (2 * 128, 96), (96, 128)} <= shapes
    num_matrices = len(list(model.matrices()))
    assert num_matrices == 3 * 2 + 2 * (1 + 2 * 8) + 2 + 1
    for changed in range(num_matrices):
        index = count()

        def change(matrix: Matrix, changed: int = changed, index: count[int] = index) -> Matrix:
            return torch_product(matrix) if next(index) == changed else matrix

        assert not with_matrices(model, change).exact


def test_a_model_is_exact_only_if_its_kernels_and_its_sums_are(checkpoint: Checkpoint) -> None:
    model_dir = checkpoint("demo", "bfloat16")
    assert not with_kernels(load(model_dir), ReferenceKernels()).exact
    assert not load(model_dir, kernels="reference").exact
    assert not any(run_ranks(4, lambda tp: load(model_dir, tp).exact, exact=False))
