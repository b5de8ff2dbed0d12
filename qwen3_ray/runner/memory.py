"""How many KV blocks a rank can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from qwen3_ray.errors import ConfigError

_GIB = 2**30
MAX_DEFAULT_BYTES = 2 * _GIB
"""Most that a rank on CPU takes unasked."""
_DEFAULT_SHARE = 0.25
_LARGEST_SHARE = 0.9
_CGROUPS = Path("/sys/fs/cgroup")


def choose_num_blocks(
    *,
    bytes_per_block: int,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_memory: int | None,
    available_bytes: int,
    default_bytes: int,
) -> int:
    """Blocks for this rank: never more than its requests can fill; may be too few for one.

    `kv_cache_memory` decides if it is given. Else `default_bytes` do, raised to what one request
    of `max_model_len` tokens needs if `available_bytes` allow that.
    """
    most = max_num_seqs * num_blocks_for(max_model_len, block_size)
    if kv_cache_memory is not None:
        return min(kv_cache_memory // bytes_per_block, most)
    least = num_blocks_for(max_model_len, block_size)
    wanted = max(default_bytes // bytes_per_block, least)
    return min(wanted, available_bytes // bytes_per_block, most)


def check_num_blocks(
    num_blocks: int, *, bytes_per_block: int, block_size: int, max_model_len: int
) -> None:
    """Raise ConfigError unless one request of `max_model_len` tokens fits `num_blocks`."""
    needed = num_blocks_for(max_model_len, block_size)
    if num_blocks < needed:
        raise ConfigError(
            "max_model_len",
            max_model_len,
            f"needs {needed * bytes_per_block} bytes of KV cache on each rank, but only "
            f"{num_blocks * bytes_per_block} can be had: lower --max-model-len "
            f"(to {num_blocks * block_size} at most) or raise --kv-cache-memory",
        )


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens`."""
    return -(-num_tokens // block_size)


def memory_budget(device: torch.device, *, num_local_ranks: int) -> tuple[int, int]:
    """Bytes that a KV cache of this rank can have at most, and by default.

    On CPU `num_local_ranks` share the machine, and a serving process is seldom alone on it: the
    default is modest. A GPU is the rank's own; a tenth stays for activations.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _LARGEST_SHARE), int(free * _LARGEST_SHARE)
    available = available_memory() / num_local_ranks
    default = min(available * _DEFAULT_SHARE, MAX_DEFAULT_BYTES)
    return int(available * _LARGEST_SHARE), int(default)


def available_memory(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes that this process may still use: the machine's, or what its cgroups leave."""
    machine = _fields(proc / "meminfo")["MemAvailable:"] * 1024
    return max(0, min([machine, *_left_in_cgroups(proc, cgroups)]))


def _left_in_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """For each limited cgroup (v2) from this process's up: its limit less what cannot be freed."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if not line.startswith("0::"):
            continue
        group = cgroups / line.removeprefix("0::").lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(cgroups):
                break
            limit = _read_int(folder / "memory.max")
            used = _read_int(folder / "memory.current")
            if limit is not None and used is not None:
                stat = _fields(folder / "memory.stat")
                page_cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
                yield limit - used + page_cache


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2}
