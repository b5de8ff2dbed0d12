from pathlib import Path

import pytest
import torch

from qwen3_ray.errors import ConfigError
from qwen3_ray.runner.memory import (
    KVLayout,
    MemoryBudget,
    available_memory,
    check_num_blocks,
    choose_num_blocks,
    memory_budget,
)

LAYOUT = KVLayout(num_layers=2, block_size=4, num_kv_heads=3, head_dim=8, dtype=torch.float32)
BLOCK = 2 * 2 * 4 * 3 * 8 * 4
"""Bytes: keys and values, layers, tokens, heads, elements, bytes of each."""


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    assert LAYOUT.bytes_per_block == BLOCK


@pytest.mark.parametrize(
    ("kv_cache_memory", "budget", "expected"),
    [
        (None, MemoryBudget(available=100 * BLOCK, default=20 * BLOCK), 20),
        (None, MemoryBudget(available=100 * BLOCK, default=3 * BLOCK), 10),  # one whole request
        (None, MemoryBudget(available=7 * BLOCK, default=3 * BLOCK), 7),  # not even that
        (None, MemoryBudget(available=900 * BLOCK, default=800 * BLOCK), 50),  # all requests
        (12 * BLOCK + 5, MemoryBudget(available=0, default=0), 12),
        (900 * BLOCK, MemoryBudget(available=0, default=0), 50),
    ],
    ids=["default", "least", "scarce", "most", "given", "given-too-much"],
)
def test_blocks_follow_from_memory_and_need(
    kv_cache_memory: int | None, budget: MemoryBudget, expected: int
) -> None:
    num_blocks = choose_num_blocks(
        LAYOUT, budget, max_model_len=40, max_num_seqs=5, kv_cache_memory=kv_cache_memory
    )
    assert num_blocks == expected


def test_a_context_that_cannot_fit_names_the_bytes_and_both_remedies() -> None:
    check_num_blocks(LAYOUT, 10, max_model_len=40)
    with pytest.raises(ConfigError) as caught:
        check_num_blocks(LAYOUT, 9, max_model_len=40)
    message = str(caught.value)
    assert str(10 * BLOCK) in message
    assert str(9 * BLOCK) in message
    assert "--max-model-len (to 36 at most)" in message
    assert "--kv-cache-memory" in message


def test_a_cache_without_a_single_block_offers_no_shorter_context() -> None:
    with pytest.raises(ConfigError, match=r"but there are 0: raise --kv-cache-memory$"):
        check_num_blocks(LAYOUT, 0, max_model_len=40)


def test_the_default_on_cpu_is_a_modest_share_of_each_rank() -> None:
    one = memory_budget(torch.device("cpu"), num_local_ranks=1)
    four = memory_budget(torch.device("cpu"), num_local_ranks=4)
    assert 0 < four.default <= one.default <= 2 * 2**30
    assert four.available < one.available
    assert one.default < one.available


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
