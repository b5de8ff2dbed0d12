from __future__ import annotations

import pytest

from qwen3_ray.cpu.thread_pool import ThreadPool


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("num_operations", [0, 100_000, 10**9])
def test_parts_cover_the_work_once(num_threads: int, num_operations: int) -> None:
    seen: list[tuple[int, int]] = []
    ThreadPool(num_threads).run(
        lambda part, num_parts: seen.append((part, num_parts)), num_operations
    )
    num_parts = len(seen)
    assert sorted(seen) == [(part, num_parts) for part in range(num_parts)]
    assert num_parts == (1 if num_operations == 0 else min(num_parts, num_threads))
    assert num_operations < 10**9 or num_parts == num_threads


def test_an_error_in_any_part_is_raised() -> None:
    def kernel(part: int, _num_parts: int) -> None:
        if part == 1:
            raise ValueError("part 1")

    with pytest.raises(ValueError, match="part 1"):
        ThreadPool(2).run(kernel, 10**9)
