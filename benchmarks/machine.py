"""Which machine and which commit a result belongs to."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16")
"""Those that decide which kernels an engine can use."""


def describe(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, object]:
    """Processor, cores, memory in bytes, what matters of the flags, versions of system parts."""
    fields = dict(_fields(cpuinfo.read_text()))
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cpu_family": fields.get("cpu family", ""),
        "cpu_model": fields.get("model", ""),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def slug(machine: dict[str, object]) -> str:
    """Short name for a file: `amd-epyc-2-cores`."""
    name = re.sub(r"\(.*?\)|@.*|\bprocessor\b|\bcpu\b", " ", str(machine["cpu"]).lower())
    words = re.findall(r"[a-z0-9]+", name)
    return "-".join([*words[:4], f"{machine['cores']}-cores"])


def commit() -> str:
    """Abbreviated id of the commit; with `-dirty` when tracked files differ from it."""
    try:
        described = _git("describe", "--always", "--abbrev=7", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.strip()


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout


def _fields(text: str) -> list[tuple[str, str]]:
    """Of the last processor that the kernel lists."""
    rows = (line.partition(":") for line in text.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in rows]
