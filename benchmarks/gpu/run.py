"""Runs stages one after the other and stores what they find as they find it."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.gpu import report
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import facts, is_lost
from benchmarks.gpu.record import Stage, run_stage
from benchmarks.gpu.setup import Checkpoints, Setup
from benchmarks.gpu.sizes import GPU, TINY
from benchmarks.gpu.stages import CORRECTNESS, guarded, stages
from benchmarks.gpu.state import State
from benchmarks.gpu.supervisor import FINISHED, STATE
from qwen3_ray.layers.kernels import KernelChoice

_SECONDS, _SECONDS_ON_CPU = 520.0, 280.0
_GRACE_S, _GRACE_OF_A_STAGE_S = 20.0, 60.0
_LEAST_S = 5.0
_SET_DEATH_SIGNAL = 1  # prctl's
_DEVICE_LOST = 3


def run(
    *,
    device: str,
    interpret: bool,
    names: Sequence[str] | None,
    seconds: float | None,
    commit: str | None,
    out: Path,
    work: Path,
    ended: int,
) -> bool:
    """Run the stages named, or all that mean something on the device; whether all is well.

    Args:
        device: and the next five: see `gpu_check`'s options.
        work: holds what another process of this run left, if there was one.
        ended: that one's exit status.

    Raises:
        ValueError: there is no stage of that name.
    """
    # The supervisor may be killed, and what it started must not outlive it.
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    chosen = torch.device(_device(device))
    with_gpu = chosen.type == "cuda"
    kernels: KernelChoice = "triton" if with_gpu or interpret else "reference"
    sizes = GPU if with_gpu else TINY
    checkpoints = Checkpoints(chosen, sizes.max_shard_bytes, work)
    setup = Setup(device=chosen, kernels=kernels, sizes=sizes, checkpoints=checkpoints)
    by_name = {stage.name: stage for stage in stages(setup)}
    if (work / STATE).exists():
        state = State.load(work / STATE)
        state.give_up(ended)
    else:
        document: dict[str, object] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit or machine.commit(),
            "facts": facts(chosen),
            "kernels": kernels,
        }
        state = State(
            file=work / STATE,
            path=out / f"{_name(document)}.json",
            document=document,
            left=_choose(list(by_name), names, None if with_gpu else CORRECTNESS),
            ends=time.monotonic() + (seconds or (_SECONDS if with_gpu else _SECONDS_ON_CPU)),
        )
    while state.left:
        _run_next(state, by_name[state.left[0]], chosen)
    (work / FINISHED).touch()
    print(f"\n{report.render(state.records)}\n\nstored as {state.path}", flush=True)
    faulthandler.dump_traceback_later(_GRACE_S, exit=True)  # threads of others may not end
    return not any(record.failed for record in state.records)


def _run_next(state: State, stage: Stage, device: torch.device) -> None:
    """Ends this process if it cannot use the device any more, or if it hangs."""
    record = state.begin(stage.name)
    if state.remaining_s < _LEAST_S:
        record.skip(stage.name, "no time left")
    else:
        # A kernel that hangs can be ended in no other way.
        limit_s = min(stage.seconds + _GRACE_OF_A_STAGE_S, state.remaining_s + _GRACE_S)
        faulthandler.dump_traceback_later(limit_s, exit=True)
        run_stage(guarded(stage), Deadline(state.remaining_s), record)
        faulthandler.cancel_dump_traceback_later()
    state.end()
    if record.failed and is_lost(device):
        print(f"  {stage.name} left the device unable to go on", flush=True)
        os._exit(_DEVICE_LOST)  # what would be tidied up is on the device


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _choose(
    known: Sequence[str], names: Sequence[str] | None, default: Sequence[str] | None
) -> list[str]:
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"no such stage: {', '.join(sorted(unknown))}; there are {known}")
    wanted = names or default or known
    return [name for name in known if name in wanted]


def _name(document: dict[str, object]) -> str:
    """Of the result's files: date, commit, device."""
    found = document["facts"]
    device = str(found["device"]) if isinstance(found, dict) else ""
    slug = "-".join(re.findall(r"[a-z0-9]+", device.lower()))
    return f"{document['date']}-{document['commit']}-{slug}"
