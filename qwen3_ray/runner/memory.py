"""How many KV blocks a rank can have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen3_ray.attention.base import kv_bytes_per_block
from qwen3_ray.errors import ConfigError

_GIB = 2**30
MAX_DEFAULT_BYTES = 2 * _GIB
"""Most that a rank on CPU takes unasked."""
_DEFAULT_SHARE = 0.25
_LARGEST_SHARE = 0.9
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """Shape of one rank's KV blocks, over all of its layers."""

    num_layers: int
    block_size: int
    """Tokens in a block."""
    num_kv_heads: int
    """This rank's."""
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_block(self) -> int:
        """Keys and values of one block in all layers."""
        return kv_bytes_per_block(
            num_layers=self.num_layers,
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
        )

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` of one request."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes that a rank's KV cache can have."""

    available: int
    """At most."""
    default: int
    """As long as they hold one request."""


def choose_num_blocks(
    layout: KVLayout, budget: MemoryBudget, *, max_model_len: int, max_num_seqs: int
) -> int:
    """Blocks for this rank: never more than its requests can fill; may be too few for one.

    The budget's default decides, raised to what one request of `max_model_len` tokens needs if the
    memory is there.
    """
    least = layout.num_blocks_for(max_model_len)
    wanted = max(budget.default // layout.bytes_per_block, least)
    return min(wanted, budget.available // layout.bytes_per_block, max_num_seqs * least)


def check_num_blocks(
    layout: KVLayout, num_blocks: int, *, max_model_len: int, step_bytes: int | None
) -> None:
    """Raise ConfigError unless one request of `max_model_len` tokens fits `num_blocks`.

    `step_bytes` were kept free for steps; None if `kv_cache_memory` decided and nothing was.
    """
    needed = layout.num_blocks_for(max_model_len)
    if num_blocks >= needed:
        return
    longest = num_blocks * layout.block_size
    remedies = [f"lower --max-model-len to {longest} at most"] if longest else []
    kept = ""
    if step_bytes is None:
        remedies += ["raise --kv-cache-memory"]
    else:
        kept = f" beside the {step_bytes} bytes that a step may take"
        remedies += ["lower --max-num-batched-tokens or --max-num-seqs", "free memory"]
        remedies += ["set --kv-cache-memory to what may be taken"]
    raise ConfigError(
        "max_model_len",
        max_model_len,
        f"needs {needed} KV blocks ({needed * layout.bytes_per_block} bytes) on each rank, but "
        f"there is room for {num_blocks} ({num_blocks * layout.bytes_per_block} bytes){kept}: "
        f"{', or '.join(remedies)}",
    )


def memory_budget(device: torch.device, *, num_local_ranks: int, step_bytes: int) -> MemoryBudget:
    """What this rank's KV cache can have, with `step_bytes` left for the activations of a step.

    On CPU `num_local_ranks` share the machine, and a serving process is seldom alone on it: the
    default is modest. A GPU is the rank's own; a tenth stays for what fragmentation wastes.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        left = max(0, int(free * _LARGEST_SHARE) - step_bytes)
        return MemoryBudget(left, left)
    return host_budget(available_memory() // num_local_ranks, step_bytes=step_bytes)


def host_budget(available: int, *, step_bytes: int) -> MemoryBudget:
    """What the KV cache of a rank on CPU can have of `available` bytes."""
    left = max(0, int(available * _LARGEST_SHARE) - step_bytes)
    return MemoryBudget(left, min(int(left * _DEFAULT_SHARE), MAX_DEFAULT_BYTES))


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
