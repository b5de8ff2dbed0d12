from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.errors import ConfigError
from qwen3_ray.runner.memory import (
    KVLayout,
    MemoryBudget,
    available_memory,
    check_num_blocks,
    choose_num_blocks,
    host_budget,
    memory_budget,
)

LAYOUT = KVLayout(num_layers=2, block_size=4, num_kv_heads=3, head_dim=8, dtype=torch.float32)
BLOCK = 2 * 2 * 4 * 3 * 8 * 4
"""Bytes: keys and values, layers, tokens, heads, elements, bytes of each."""


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    assert LAYOUT.bytes_per_block == BLOCK


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (MemoryBudget(available=100 * BLOCK, default=20 * BLOCK), 20),
        (MemoryBudget(available=100 * BLOCK, default=3 * BLOCK), 10),  # one whole request
        (MemoryBudget(available=7 * BLOCK, default=3 * BLOCK), 7),  # not even that
        (MemoryBudget(available=900 * BLOCK, default=800 * BLOCK), 50),  # all requests
        (MemoryBudget(available=12 * BLOCK + 5, default=12 * BLOCK + 5), 12),
        (MemoryBudget(available=9 * BLOCK, default=9 * BLOCK), 9),
    ],
    ids=["default", "least", "scarce", "most", "given", "given-too-little"],
)
def test_blocks_follow_from_memory_and_need(budget: MemoryBudget, expected: int) -> None:
    assert choose_num_blocks(LAYOUT, budget, max_model_len=40, max_num_seqs=5) == expected


def message_of(num_blocks: int, *, step_bytes: int | None) -> str:
    check_num_blocks(LAYOUT, 10, max_model_len=40, step_bytes=step_bytes)
    with pytest.raises(ConfigError) as caught:
        check_num_blocks(LAYOUT, num_blocks, max_model_len=40, step_bytes=step_bytes)
    return str(caught.value)


def test_a_context_that_the_given_memory_cannot_hold_names_both_remedies() -> None:
    assert message_of(9, step_bytes=None) == (
        f"max_model_len = 40: needs 10 KV blocks ({10 * BLOCK} bytes) on each rank, but there is "
        f"room for 9 ({9 * BLOCK} bytes): lower --max-model-len to 36 at most, or raise "
        "--kv-cache-memory"
    )


def test_a_context_that_the_free_memory_cannot_hold_tells_what_steps_take_of_it() -> None:
    assert message_of(9, step_bytes=777) == (
        f"max_model_len = 40: needs 10 KV blocks ({10 * BLOCK} bytes) on each rank, but there is "
        f"room for 9 ({9 * BLOCK} bytes) beside the 777 bytes that a step may take: lower "
        "--max-model-len to 36 at most, or lower --max-num-batched-tokens or --max-num-seqs, or "
        "free memory, or set --kv-cache-memory to what may be taken"
    )


def test_a_cache_without_a_single_block_offers_no_shorter_context() -> None:
    assert message_of(0, step_bytes=None).endswith("room for 0 (0 bytes): raise --kv-cache-memory")


def test_the_default_on_cpu_is_a_modest_share_of_each_rank() -> None:
    one = memory_budget(torch.device("cpu"), num_local_ranks=1, step_bytes=0)
    four = memory_budget(torch.device("cpu"), num_local_ranks=4, step_bytes=0)
    assert 0 < four.default <= one.default <= 2 * 2**30
    assert four.available < one.available
    assert one.default < one.available


@given(available=st.integers(0, 2**40), step_bytes=st.integers(0, 2**40))
def test_what_a_step_may_take_is_left_to_it(available: int, step_bytes: int) -> None:
    budget = host_budget(available, step_bytes=step_bytes)
    assert 0 <= budget.default <= budget.available
    assert budget.available == 0 or budget.available + step_bytes <= available


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_cgroup_of_ours_or_above_us_limits_what_the_machine_has(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_memory(proc, groups) == 8000 * 1024
    write(proc / "self" / "cgroup", "0::/pod/container\n")
    assert available_memory(proc, groups) == 8000 * 1024
    for name, limit in (("pod", "5000000"), ("pod/container", "max")):
        write(groups / name / "memory.max", limit + "\n")
        write(groups / name / "memory.current", "3000000\n")
        write(groups / name / "memory.stat", "anon 1\ninactive_file 500000\nactive_file 200000\n")
    assert available_memory(proc, groups) == 2_700_000  # the page cache can be had
    write(groups / "pod" / "memory.current", "9000000\n")
    assert available_memory(proc, groups) == 0
