"""Weights of a CUDA device: taken as they are, refused if they are not finite, exact in shards."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from qwen3_ray.layers.linear import MatrixFormat
from qwen3_ray.layers.triton_matrix import TritonMatrix

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pack = partial(TritonMatrix.pack, device=DEVICE, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bfloat16, "bf16-triton-exact"),
        (torch.float16, "fp16-triton-exact"),
        (torch.float32, "fp32-triton-exact"),
    ],
)
def test_parts_lie_one_below_the_other(dtype: torch.dtype, name: str) -> None:
    parts = [torch.randn(size, 24).bfloat16() for size in (16, 5, 0, 3)]
    form = MatrixFormat(dtype, DEVICE, partial(TritonMatrix.pack, device=DEVICE, dtype=dtype))
    matrix = form.build(*parts)
    assert (matrix.name, matrix.row_invariant) == (name, True)
    assert (matrix.out_features, matrix.in_features) == (24, 24)
    x = torch.eye(24, device=DEVICE, dtype=dtype)
    assert torch.equal(matrix.matmul(x).T.cpu(), torch.cat(parts).to(dtype))


def test_nothing_of_the_given_memory_is_kept() -> None:
    weight = torch.randn(8, 16).bfloat16()
    matrix, x = pack(weight), torch.randn(3, 16, device=DEVICE).bfloat16()
    expected = matrix.matmul(x)
    weight.zero_()
    assert torch.equal(matrix.matmul(x), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    weights = [torch.zeros(4, 8), torch.zeros(4, 8)]
    weights[1][3, 7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack(*weights)


def test_what_the_dtype_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        TritonMatrix.pack(torch.full((2, 8), 1e5), device=DEVICE, dtype=torch.float16)


def test_shards_of_outputs_have_the_bits_of_the_whole() -> None:
    """And rows of a mapped file's tensor may lie apart, as a rank's columns do."""
    apart = torch.randn(160, 700).bfloat16()
    weight, x = apart[:, 30:670], torch.randn(5, 640, device=DEVICE).bfloat16()
    expected = pack(weight).matmul(x)
    shards = [pack(shard).matmul(x) for shard in weight.chunk(4)]
    assert torch.equal(torch.cat(shards, dim=1), expected)
