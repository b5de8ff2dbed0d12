"""The CPU kernels equal their plain torch oracles, and no row's bits depend on another's."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from qwen3_ray.attention.base import AttentionMetadata, allocate_kv_caches
from qwen3_ray.attention.reference import read_blocks
from qwen3_ray.errors import ConfigError
from qwen3_ray.layers.kernels import Kernels, ReferenceKernels, select_kernels
from qwen3_ray.layers.numba_kernels import NumbaKernels
from qwen3_ray.layers.rotary import QKNorm, build_cos_sin
from qwen3_ray.runner.sampling_way import ReferenceSampling, select_sampling

NUM_ROWS = 97
HEAD_DIM, NUM_HEADS, NUM_KV_HEADS = 48, 6, 2
NUM_BLOCKS, BLOCK_SIZE = 9, 16
SIZES = [64, 100, 192]  # 100 is no multiple of a vector's width
CPU = torch.device("cpu")
Operation = Callable[[Kernels, slice], torch.Tensor]


def add_rms_norm(size: int) -> Operation:
    x, residual, weight = *torch.randn(2, NUM_ROWS, size), torch.randn(size)

    def run(kernels: Kernels, rows: slice) -> torch.Tensor:
        total = residual[rows].clone()
        normed = kernels.add_rms_norm(x[rows], total, weight, 1e-6)
        return torch.cat((total, normed), dim=1)

    return run


def silu_and_mul(size: int) -> Operation:
    gate_up = 8 * torch.randn(NUM_ROWS, 2 * size)
    return lambda kernels, rows: kernels.silu_and_mul(gate_up[rows])


def qk_norm_rope_write(_size: int) -> Operation:
    qkv = torch.randn(NUM_ROWS, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    positions = torch.randint(0, 500, (NUM_ROWS,)).int()
    norm = QKNorm(torch.randn(HEAD_DIM), torch.randn(HEAD_DIM), 1e-6)
    cos_sin = build_cos_sin(head_dim=HEAD_DIM, theta=1e4, num_positions=500, device=CPU)

    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:NUM_ROWS]
    empty = torch.zeros(0, dtype=torch.int32)

    def run(kernels: Kernels, rows: slice) -> torch.Tensor:
        cache = allocate_kv_caches(
            num_layers=1,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_kv_heads=NUM_KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=torch.float32,
            device=CPU,
            panels=kernels.attention.panels,
        )[0]
        metadata = AttentionMetadata(
            query_start_loc=empty,
            seq_lens=empty,
            block_tables=empty,
            slot_mapping=slots[rows].int(),
            block_size=BLOCK_SIZE,
        )
        q = kernels.qk_norm_rope_write(
            qkv[rows],
            positions[rows],
            norm,
            cos_sin,
            NUM_KV_HEADS,
            cache=cache,
            metadata=metadata,
        )
        assert q.is_contiguous()
        k, v = (
            part[:, slots[rows]].transpose(0, 1)
            for part in read_blocks(cache, torch.arange(NUM_BLOCKS))
        )
        return torch.cat((q, k, v), dim=1).flatten(1)

    return run


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [add_rms_norm, silu_and_mul, qk_norm_rope_write])
def test_kernel_equals_its_oracle(make: Callable[[int], Operation], size: int) -> None:
    operation = make(size)
    expected = operation(ReferenceKernels(), slice(None))
    torch.testing.assert_close(
        operation(NumbaKernels(2), slice(None)), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [add_rms_norm, silu_and_mul, qk_norm_rope_write])
def test_a_row_has_the_same_bits_alone_and_on_any_thread(
    make: Callable[[int], Operation], size: int
) -> None:
    operation = make(size)
    whole = operation(NumbaKernels(1), slice(None))
    assert torch.equal(operation(NumbaKernels(3), slice(None)), whole)
    for start, stop in ((0, 1), (5, 6), (96, 97), (3, 10)):
        assert torch.equal(operation(NumbaKernels(1), slice(start, stop)), whole[start:stop])


def test_extreme_gates_give_no_nan() -> None:
    gate = torch.tensor([[-1e30, -200.0, -100.0, -0.0, 0.0, 100.0, 200.0, 1e30]])
    out = NumbaKernels(1).silu_and_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))
    expected = ReferenceKernels().silu_and_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))
    torch.testing.assert_close(out[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-30)
    assert torch.isfinite(out).all()


def test_nan_stays_in_its_row() -> None:
    """A request whose numbers broke must be seen to be broken, and break no other."""
    x = torch.randn(4, 64)
    x[1, 3] = float("nan")
    normed = NumbaKernels(1).add_rms_norm(x, torch.zeros_like(x), torch.ones(64), 1e-6)
    gated = NumbaKernels(1).silu_and_mul(x)
    assert normed[1].isnan().all()
    assert gated[1, 3].isnan()
    assert torch.isfinite(normed[[0, 2, 3]]).all()
    assert torch.isfinite(gated[[0, 2, 3]]).all()


def test_the_rotation_table_does_not_depend_on_its_length() -> None:
    short = build_cos_sin(head_dim=64, theta=1e6, num_positions=37, device=CPU)
    long = build_cos_sin(head_dim=64, theta=1e6, num_positions=1000, device=CPU)
    assert torch.equal(short, long[:37])


@pytest.mark.parametrize("exact", [True, False])
def test_each_device_gets_its_kernels(exact: bool) -> None:
    on_gpu = select_kernels("auto", torch.device("cuda"), exact=exact)
    assert on_gpu.name == ("triton-exact" if exact else "triton-fast")
    assert on_gpu.row_invariant == on_gpu.attention.row_invariant == exact
    assert select_kernels("auto", CPU, exact=exact).name == "numba"
    assert select_kernels("triton", CPU, exact=exact).name == on_gpu.name
    assert select_kernels("reference", CPU, exact=exact).name == "reference"


def test_without_triton_a_gpu_gets_plain_torch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "qwen3_ray.layers.triton_kernels", None)
    assert select_kernels("auto", torch.device("cuda"), exact=False).name == "reference"
    assert isinstance(select_sampling("auto", torch.device("cuda")), ReferenceSampling)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Triton" in caplog.text
    with pytest.raises(ImportError):
        select_kernels("triton", torch.device("cuda"))


def test_without_triton_a_gpu_that_must_be_exact_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "qwen3_ray.layers.triton_kernels", None)
    with pytest.raises(ConfigError, match=r"^numerics = 'exact': on CUDA needs Triton"):
        select_kernels("auto", torch.device("cuda"), exact=True)
    assert select_kernels("auto", CPU, exact=True).name == "numba"
