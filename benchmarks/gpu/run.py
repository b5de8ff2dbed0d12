"""Runs stages one after the other and stores what they found after each."""

from __future__ import annotations

import faulthandler
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.gpu import report
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import facts
from benchmarks.gpu.record import Record, Stage, run_stage
from benchmarks.gpu.setup import Checkpoints, Setup
from benchmarks.gpu.sizes import GPU, TINY
from benchmarks.gpu.stages import CORRECTNESS, guarded, stages
from qwen3_ray.layers.kernels import KernelChoice

_SECONDS, _SECONDS_ON_CPU = 520.0, 280.0
_GRACE_S = 20.0


def run(
    *,
    device: str,
    interpret: bool,
    names: Sequence[str] | None,
    seconds: float | None,
    commit: str | None,
    out: Path,
) -> bool:
    """Run the stages named, or all that mean something on the device; whether all is well.

    Raises:
        ValueError: there is no stage of that name.
    """
    chosen = torch.device(_device(device))
    with_gpu = chosen.type == "cuda"
    kernels: KernelChoice = "triton" if with_gpu or interpret else "reference"
    sizes = GPU if with_gpu else TINY
    checkpoints = Checkpoints(chosen, sizes.max_shard_bytes)
    setup = Setup(device=chosen, kernels=kernels, sizes=sizes, checkpoints=checkpoints)
    limit_s = seconds or (_SECONDS if with_gpu else _SECONDS_ON_CPU)
    # A kernel that hangs cannot be interrupted; what was found before it is stored.
    faulthandler.dump_traceback_later(limit_s + _GRACE_S, exit=True)
    deadline = Deadline(limit_s)
    document: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit or machine.commit(),
        "facts": facts(chosen),
        "kernels": kernels,
    }
    path = out / f"{_name(document)}.json"
    records: list[Record] = []
    try:
        for stage in _choose(stages(setup), names, None if with_gpu else CORRECTNESS):
            records.append(run_stage(guarded(stage), deadline))
            _store(path, document, records)
    finally:
        faulthandler.cancel_dump_traceback_later()
        checkpoints.close()
    text = report.render(records)
    path.with_suffix(".txt").write_text(text + "\n")
    print(f"\n{text}\n\nstored as {path}", flush=True)
    return not any(record.failed for record in records)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _choose(
    all_stages: Sequence[Stage], names: Sequence[str] | None, default: Sequence[str] | None
) -> list[Stage]:
    known = [stage.name for stage in all_stages]
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"no such stage: {', '.join(sorted(unknown))}; there are {known}")
    wanted = names or default or known
    return [stage for stage in all_stages if stage.name in wanted]


def _name(document: dict[str, object]) -> str:
    """Of the result's files: date, commit, device."""
    found = document["facts"]
    device = str(found["device"]) if isinstance(found, dict) else ""
    slug = "-".join(re.findall(r"[a-z0-9]+", device.lower()))
    return f"{document['date']}-{document['commit']}-{slug}"


def _store(path: Path, document: dict[str, object], records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = document | {"stages": [asdict(record) for record in records]}
    path.write_text(json.dumps(stored, indent=1) + "\n")
