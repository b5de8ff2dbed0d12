"""Ranks 1 and up as child processes of the one that holds rank 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import qwen3_ray
from qwen3_ray.config import EngineConfig
from qwen3_ray.engine.rank import config_to_json
from qwen3_ray.errors import EngineError

_TAIL_CHARS = 2000
_POLL_S = 0.02


class RankProcesses:
    """One child for each rank but 0. They end with this process, however it ends.

    Not multiprocessing, which would run the user's script again. A child watches the pipe that is
    its stdin; the system closes it with the parent.
    """

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        """Start the children; `directory` is private to this engine, their logs go there."""
        self._directory = directory
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, config.tensor_parallel_size):
            self._children[rank] = _start(config, rank, directory)

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return [child.pid for child in self._children.values()]

    def check(self) -> None:
        """Raise EngineError, with the end of its stderr, if a child has ended."""
        dead = self.describe_dead()
        if dead:
            raise EngineError(dead)

    def describe_dead(self, *, wait_s: float = 0.0) -> str:
        """What is known of the children that have ended; waits a little for one if none has.

        A group's connections close a moment before its process can be seen to be dead.
        """
        deadline = time.monotonic() + wait_s
        while True:
            statuses = {rank: child.poll() for rank, child in self._children.items()}
            dead = [
                f"rank {rank} {_describe_status(status)}: {self._stderr_tail(rank)}".rstrip(": ")
                for rank, status in statuses.items()
                if status is not None
            ]
            if dead or not statuses or time.monotonic() >= deadline:
                return "; ".join(dead)
            time.sleep(_POLL_S)

    def close(self, *, grace_s: float) -> None:
        """Close the children's pipes, and kill what is still there after `grace_s` seconds."""
        for child in self._children.values():
            if child.stdin is not None:
                child.stdin.close()
        deadline = time.monotonic() + grace_s
        for child in self._children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _stderr_tail(self, rank: int) -> str:
        text = _log_path(self._directory, rank).read_text(errors="replace")
        return text[-_TAIL_CHARS:].strip()


def _start(config: EngineConfig, rank: int, directory: Path) -> subprocess.Popen[bytes]:
    package_root = str(Path(qwen3_ray.__file__).parents[1])
    search_path = [package_root, os.environ.get("PYTHONPATH", "")]
    # -P: a module in the user's directory must not stand in for a library's.
    command = [sys.executable, "-P", "-m", "qwen3_ray.engine.rank", "--rank", str(rank)]
    command += ["--rendezvous-dir", str(directory), "--config", config_to_json(config)]
    with _log_path(directory, rank).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
            start_new_session=True,  # Ctrl-C is for the parent; it ends its children in order
        )


def _log_path(directory: Path, rank: int) -> Path:
    return directory / f"rank{rank}.log"


def _describe_status(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
