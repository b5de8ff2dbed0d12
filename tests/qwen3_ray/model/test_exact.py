"""A row's logits have the same bits whatever is computed beside it and however it is chunked."""

from __future__ import annotations

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.linear import DenseMatrix
from qwen3_ray.layers.row_plan import RowPlan, find_row_plan
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import run_ranks
from tests.qwen3_ray.model.helpers import Checkpoint, batched_logits, load, random_ids

NUM_TOKENS = 70
CHUNK_SIZES = [1, 7, 16, 64]
BATCH_SIZES = [2, 5, 17]
MAX_ROWS = 2048


@pytest.fixture(scope="module", autouse=True)
def num_threads() -> None:
    """As many as the machine has: bits must not depend on them either."""


@pytest.fixture(scope="module", params=["auto", "float32"])
def exact_model(
    request: pytest.FixtureRequest, checkpoint: Checkpoint
) -> tuple[Qwen3ForCausalLM, RowPlan, list[int]]:
    """Packed and fp32 linears, with the row plan of this machine."""
    model_dir = checkpoint("demo", "bfloat16")
    model = load(model_dir, dtype=request.param)
    plan = model.find_row_plan("exact", MAX_ROWS)
    assert plan.exact
    return model, plan, random_ids(model_dir, NUM_TOKENS)


@pytest.mark.parametrize("chunk", CHUNK_SIZES)
def test_chunks_have_the_bits_of_the_whole(
    chunk: int, exact_model: tuple[Qwen3ForCausalLM, RowPlan, list[int]]
) -> None:
    model, plan, ids = exact_model
    whole = forward_logits(model, ids, plan=plan)
    assert torch.equal(forward_logits(model, ids, [chunk], plan=plan), whole)


@pytest.mark.parametrize("batch", BATCH_SIZES)
def test_a_batch_has_the_bits_of_each_alone(
    batch: int, exact_model: tuple[Qwen3ForCausalLM, RowPlan, list[int]]
) -> None:
    model, plan, ids = exact_model
    alone = forward_logits(model, ids, plan=plan)
    others = [ids[i : i + 3 * i + 2] for i in range(batch - 1)]
    for chunk in (1, 13):
        together = batched_logits(model, [*others, ids], plan, chunk)
        assert torch.equal(together[-1], alone)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_keep_the_bits(size: int, checkpoint: Checkpoint) -> None:
    model_dir = checkpoint("demo", "bfloat16")
    ids = random_ids(model_dir, 40)

    def run(tp: TPGroup) -> bool:
        model = load(model_dir, tp)
        plan = model.find_row_plan("auto", MAX_ROWS)
        assert plan.exact
        whole = forward_logits(model, ids, plan=plan)
        chunked = forward_logits(model, ids, [13, 1], plan=plan)
        return torch.equal(whole, chunked)

    assert all(run_ranks(size, run))


def test_without_the_plan_bits_differ(
    exact_model: tuple[Qwen3ForCausalLM, RowPlan, list[int]],
) -> None:
    """The control: were the kernels exact by themselves, the tests above would show nothing."""
    model, _, ids = exact_model
    whole = forward_logits(model, ids)
    assert any(
        not torch.equal(forward_logits(model, ids, [chunk]), whole) for chunk in (1, 2, 7, 13)
    )


def test_reference_kernels_and_fast_numerics_claim_nothing(checkpoint: Checkpoint) -> None:
    model_dir = checkpoint("demo", "bfloat16")
    reference = load(model_dir, kernels="reference")
    assert reference.find_row_plan("exact", MAX_ROWS) == RowPlan()
    assert load(model_dir).find_row_plan("fast", MAX_ROWS) == RowPlan()


def test_torch_products_differ_somewhere_and_the_plan_avoids_it() -> None:
    """The control on one linear, over several shapes: a machine may be exact at one of them."""
    differs = False
    for in_features, out_features in ((512, 256), (1024, 512), (3072, 1024)):
        matrix = DenseMatrix(torch.randn(out_features, in_features))
        x = torch.randn(200, in_features)
        plan = find_row_plan([matrix], TPGroup.single(), 200)
        expected = matrix.matmul(x[: plan.pad(200)])
        for num_rows in (1, 2, 3, 5, 7):
            differs |= not torch.equal(matrix.matmul(x[:num_rows]), expected[:num_rows])
            padded = matrix.matmul(x[: plan.pad(num_rows)])[:num_rows]
            assert torch.equal(padded, expected[:num_rows])
    assert differs
