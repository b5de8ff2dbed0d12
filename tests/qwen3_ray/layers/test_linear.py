from __future__ import annotations

from functools import partial

import pytest
import torch

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from qwen3_ray.layers.linear import (
    ColumnParallelLinear,
    DenseMatrix,
    MatrixFormat,
    RowParallelLinear,
)
from qwen3_ray.layers.packed import PackedMatrix
from qwen3_ray.testing_models import run_ranks

CPU = torch.device("cpu")


def test_weights_are_held_as_the_format_says() -> None:
    weight = torch.randn(40, 24).bfloat16()
    dense = MatrixFormat(torch.float32, CPU).build(weight)
    packed = MatrixFormat(
        torch.float32, CPU, partial(PackedMatrix, pool=ThreadPool(1), halves=True)
    ).build(weight)
    assert (dense.name, dense.row_invariant) == ("float32", False)
    assert (packed.name, packed.row_invariant) == ("fp16-panels", True)
    x = torch.randn(6, 24)
    for matrix in (dense, packed):
        assert (matrix.out_features, matrix.in_features) == (40, 24)
        torch.testing.assert_close(matrix.matmul(x), x @ weight.float().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_column_then_row_parallel_is_the_product(size: int) -> None:
    up, down, x = torch.randn(24, 10), torch.randn(7, 24), torch.randn(5, 10)

    def run(tp: TPGroup) -> torch.Tensor:
        first = ColumnParallelLinear(DenseMatrix(up.chunk(size)[tp.rank]))
        second = RowParallelLinear(DenseMatrix(down.chunk(size, dim=1)[tp.rank]), tp)
        return second.forward(first.forward(x))

    results = run_ranks(size, run)
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], x @ up.T @ down.T, rtol=1e-4, atol=1e-4)


def test_embedding_and_head_over_a_padded_vocabulary() -> None:
    """7 ids over 3 ranks: 3 + 3 + 1 and two rows of padding."""
    table = torch.randn(7, 4).bfloat16()
    padded = torch.cat((table, torch.zeros(2, 4).bfloat16()))
    ids = torch.arange(7, dtype=torch.int32)

    def run(tp: TPGroup) -> tuple[torch.Tensor, torch.Tensor | None]:
        shard = padded[3 * tp.rank : 3 * tp.rank + 3]
        embedding = VocabParallelEmbedding(shard, 3 * tp.rank, torch.float32, tp)
        rows = embedding.forward(ids)
        return rows, VocabParallelHead(DenseMatrix(shard.float()), 7, tp).forward(rows)

    results = run_ranks(3, run)
    for rows, _ in results:
        assert torch.equal(rows, table.float())
    logits = results[0][1]
    assert logits is not None
    torch.testing.assert_close(logits, table.float() @ table.float().T)
    assert results[1][1] is None
    assert results[2][1] is None
