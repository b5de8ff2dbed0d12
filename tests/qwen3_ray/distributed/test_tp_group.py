from __future__ import annotations

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.testing_models import CountingTPGroup, run_ranks


def test_one_process_needs_no_group() -> None:
    group = TPGroup.single()
    x = torch.randn(3, 4)
    assert group.all_reduce(x) is x
    assert group.gather(x) is x


def addends(size: int, num_rows: int) -> list[torch.Tensor]:
    """Of very different sizes: the order of additions shows in the bits."""
    return [10.0**rank * torch.randn(num_rows, 64) for rank in range(size)]


@pytest.mark.parametrize("num_rows", [1, 5, 33])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_all_reduce_adds_in_rank_order(size: int, num_rows: int) -> None:
    parts = addends(size, num_rows)
    expected = parts[0].clone()
    for part in parts[1:]:
        expected += part

    def run(group: TPGroup) -> bool:
        x = parts[group.rank].clone()
        assert group.all_reduce(x) is x
        return torch.equal(x, expected)

    assert all(run_ranks(size, run))


def test_the_backends_own_sum_has_another_order() -> None:
    """The control: were it the same, pinning the order would be for nothing."""
    parts = addends(4, 33)
    expected = parts[0] + parts[1] + parts[2] + parts[3]
    sums = run_ranks(4, lambda group: group.all_reduce(parts[group.rank].clone()), exact=False)
    torch.testing.assert_close(sums[0], expected, rtol=1e-4, atol=1e-2)
    assert not torch.equal(sums[0], expected)


@pytest.mark.parametrize("exact", [True, False], ids=["memory", "gloo"])
@pytest.mark.parametrize("num_rows", [1, 5, 700])
def test_gather_lays_all_parts_side_by_side_on_rank_0_alone(num_rows: int, exact: bool) -> None:
    x = torch.arange(70.0 * num_rows).view(70, num_rows).T  # not contiguous
    results = run_ranks(3, lambda group: group.gather(x + group.rank), exact=exact)
    assert results[0] is not None
    assert torch.equal(results[0], torch.cat([x, x + 1, x + 2], dim=1))
    assert results[1:] == [None, None]


def test_groups_on_one_store_do_not_mix_and_count() -> None:
    def run(group: TPGroup) -> tuple[float, dict[str, int]]:
        counting = CountingTPGroup.of(group)
        x = counting.all_reduce(torch.ones(2))
        counting.gather(x)
        return float(x[0]), dict(counting.counts)

    assert run_ranks(2, run) == [(2.0, {"all_reduce": 1, "gather": 1})] * 2


def test_a_missing_rank_is_an_error_within_the_timeout() -> None:
    from torch._C import _distributed_c10d as c10d  # noqa: PLC0415

    with pytest.raises(RuntimeError):
        TPGroup.rendezvous(
            c10d.HashStore(), 0, 2, device=torch.device("cpu"), timeout_s=0.5, exact=True
        )
