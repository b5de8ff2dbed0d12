"""How weights become panels: from several parts, whose rows may lie apart; and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers import numba_packing, packed
from qwen3_ray.layers.linear import MatrixFormat, is_finite
from qwen3_ray.layers.packed import PackedMatrix

POOL = ThreadPool(2)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DENSE = MatrixFormat(torch.float32, torch.device("cpu"))
UNFIT = [float("nan"), float("inf"), -float("inf")]


def random(*shape: int) -> torch.Tensor:
    """Numbers that every dtype holds."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).bfloat16().half().bfloat16()


def unpacked(matrix: PackedMatrix) -> torch.Tensor:
    """The panels as rows, with what fills them up."""
    panels: npt.NDArray[np.generic] = matrix.panels
    halves = torch.from_numpy(panels.view(np.float16 if matrix.is_half else np.float32))
    return halves.float().transpose(1, 2).reshape(-1, halves.shape[1])


def assert_holds(matrix: PackedMatrix, weights: Sequence[torch.Tensor]) -> None:
    """Exactly these rows, and zeros around them."""
    expected = torch.cat([weight.float() for weight in weights])
    assert (matrix.out_features, matrix.in_features) == expected.shape
    rows = unpacked(matrix)
    assert torch.equal(rows[: expected.shape[0], : expected.shape[1]], expected)
    assert not rows[expected.shape[0] :].any()
    assert not rows[:, expected.shape[1] :].any()


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 8, 24]), max_size=4) | st.lists(st.integers(0, 40)),
    width=st.integers(1, 30),
    apart=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    halves=st.booleans(),
)
def test_rows_of_all_parts_follow_each_other(
    counts: list[int], width: int, apart: int, dtype: torch.dtype, halves: bool
) -> None:
    """Parts of whole panels are read in place; what lies between their rows is never looked at."""
    weights = []
    for index, count in enumerate([*counts, 8]):
        wide = torch.full((count, width + apart), float("nan"), dtype=dtype)
        wide[:, :width] = random(count + index, width)[index:]
        weights.append(wide[:, :width])
    matrix = PackedMatrix(*weights, pool=POOL, halves=halves)
    assert matrix.is_half == halves
    assert_holds(matrix, weights)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_pack_all_panels(dtype: torch.dtype, num_threads: int) -> None:
    weight = random(1_000, 512).to(dtype)
    matrix = PackedMatrix(weight, pool=ThreadPool(num_threads), halves=True)
    assert_holds(matrix, [weight])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", [np.uint16, np.float32])
def test_norms_are_those_of_each_panel(
    dtype: torch.dtype, stored: type[np.uint16] | type[np.float32]
) -> None:
    weight = random(24, 9).to(dtype)
    weight[3, 3], weight[20, 8] = 1e-6, 4.03e-7  # float16 rounds both
    panels = np.zeros((3, 12, 8), stored)
    norms = np.full((3, 2), np.nan)
    numba_packing.pack(0, 1, packed.as_array(weight).reshape(-1), 9, 9, panels, norms)
    rows = weight.double().reshape(3, -1)
    rounded = rows.half().double() if stored is np.uint16 else rows
    expected = torch.stack([rows.square().sum(1), (rows - rounded).square().sum(1)], dim=1)
    torch.testing.assert_close(torch.from_numpy(norms), expected)
    rounds = stored is np.uint16 and dtype != torch.float16
    assert (norms[:, 1] > 0).tolist() == [rounds, False, rounds]


@pytest.mark.parametrize("value", UNFIT)
@pytest.mark.parametrize("place", [(0, 0), (7, 40), (33, 5), (40, 39)])
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_refused(
    dtype: torch.dtype, halves: bool, place: tuple[int, int], value: float
) -> None:
    weight = random(41, 41).to(dtype)
    weight[place] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        PackedMatrix(random(16, 41).to(dtype), weight, pool=POOL, halves=halves)
    with pytest.raises(ValueError, match="NaN or infinity"):
        DENSE.build(random(16, 41).to(dtype), weight)
    assert not is_finite(weight)
    assert is_finite(random(41, 41).to(dtype))
    assert is_finite(torch.empty(0, 41, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    """Their squares are beyond the range of the type."""
    weight = torch.full((64, 40), torch.finfo(dtype).max, dtype=dtype)
    matrix = PackedMatrix(weight, pool=POOL, halves=True)
    assert not matrix.is_half
    assert_holds(matrix, [weight])
    assert is_finite(weight)
