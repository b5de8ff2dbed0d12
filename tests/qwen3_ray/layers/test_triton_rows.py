"""RMSNorm and SwiGLU on the GPU equal plain torch, and no row's bits depend on another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from qwen3_ray.layers import activation, norm, triton_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_ROWS = 5
SIZES = [64, 100, 2_560, 8_192]
"""Powers of two and others; 100 is no multiple of a vector of eight, either."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-2
Operation = Callable[[torch.Tensor], torch.Tensor]
"""Of rows whose columns are the operands side by side."""


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random_rows(size: int, dtype: torch.dtype, num_rows: int = NUM_ROWS) -> torch.Tensor:
    torch.manual_seed(0)
    return 4 * torch.randn(num_rows, 2 * size, device=DEVICE).to(dtype)


def weight_of(size: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(1)
    return 1 + 0.3 * torch.randn(size, device=DEVICE).to(dtype)


def add_norm_with(function: Callable[..., torch.Tensor]) -> Operation:
    def run(rows: torch.Tensor) -> torch.Tensor:
        x, residual = (
            half.clone(memory_format=torch.contiguous_format) for half in rows.chunk(2, dim=1)
        )
        normed = function(x, residual, weight_of(x.shape[1], x.dtype), EPS)
        return torch.cat((residual, normed), dim=1)

    return run


def exact_norm(rows: torch.Tensor) -> torch.Tensor:
    """In fp64, of the residual as the dtype holds it."""
    x, residual = rows.chunk(2, dim=1)
    total = (residual + x).double()
    normed = total * (total.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()
    return torch.cat((total, normed * weight_of(x.shape[1], x.dtype).double()), dim=1)


def exact_gate(rows: torch.Tensor) -> torch.Tensor:
    gate, up = rows.double().chunk(2, dim=1)
    return gate.sigmoid() * gate * up


OPERATIONS: dict[str, tuple[Operation, Operation, Operation]] = {
    "norm": (
        add_norm_with(triton_rows.add_rms_norm),
        add_norm_with(norm.add_rms_norm),
        exact_norm,
    ),
    "gate": (triton_rows.silu_and_mul, activation.silu_and_mul, exact_gate),
}
"""Ours, plain torch's, and fp64's."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_they_equal_plain_torch(name: str, size: int, dtype: torch.dtype) -> None:
    ours, plain, exact = OPERATIONS[name]
    rows = random_rows(size, dtype)
    result, expected, truth = ours(rows), plain(rows), exact(rows)
    assert result.dtype == dtype
    assert result.is_contiguous()
    # Two rounded factors, each of which may be the neighbouring number.
    rtol = 4e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-6)
    if dtype == torch.float32:
        return
    assert (result != expected).double().mean() <= 0.01
    error, torch_error = ((value - truth).norm() for value in (result, expected))
    assert error <= 1.2 * torch_error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [100, 2_560])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    name: str, size: int, dtype: torch.dtype
) -> None:
    ours = OPERATIONS[name][0]
    rows = random_rows(size, dtype, num_rows=17)
    whole = ours(rows)
    assert torch.equal(ours(rows.flip(0)).flip(0), whole)
    for start, stop in ((0, 1), (5, 6), (16, 17), (3, 12)):
        assert torch.equal(ours(rows[start:stop].contiguous()), whole[start:stop])


def test_another_order_of_the_sum_shows() -> None:
    """The control: rounding is coarse enough here for another order of the sum to be seen."""
    rows = random_rows(2_560, torch.float32)
    x, residual = (half.contiguous() for half in rows.chunk(2, dim=1))
    backwards = torch.cat((x.flip(1), residual.flip(1)), dim=1)
    weight = torch.ones(2_560, device=DEVICE)
    there = triton_rows.add_rms_norm(x, residual.clone(), weight, EPS)
    x, residual = (half.contiguous() for half in backwards.chunk(2, dim=1))
    back = triton_rows.add_rms_norm(x, residual, weight, EPS).flip(1)
    torch.testing.assert_close(back, there)
    assert not torch.equal(back, there)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_gates_give_no_nan(dtype: torch.dtype) -> None:
    gate = torch.tensor([[-6e4, -200.0, -100.0, -0.0, 0.0, 100.0, 200.0, 6e4]], device=DEVICE)
    rows = torch.cat((gate, torch.ones_like(gate)), dim=1).to(dtype)
    torch.testing.assert_close(
        triton_rows.silu_and_mul(rows), activation.silu_and_mul(rows), rtol=1e-5, atol=1e-30
    )


def test_nan_stays_in_its_row() -> None:
    """A request whose numbers broke must be seen to be broken, and break no other."""
    x = torch.randn(4, 64, device=DEVICE)
    x[1, 3] = float("nan")
    weight = torch.ones(64, device=DEVICE)
    normed = triton_rows.add_rms_norm(x, torch.zeros_like(x), weight, EPS)
    gated = triton_rows.silu_and_mul(x)
    assert normed[1].isnan().all()
    assert gated[1, 3].isnan()
    assert torch.isfinite(normed[[0, 2, 3]]).all()
    assert torch.isfinite(gated[[0, 2, 3]]).all()


def test_no_rows_are_no_error() -> None:
    x = torch.empty(0, 64, device=DEVICE)
    weight = torch.ones(64, device=DEVICE)
    assert triton_rows.add_rms_norm(x, x.clone(), weight, EPS).shape == (0, 64)
    assert triton_rows.silu_and_mul(x).shape == (0, 32)
