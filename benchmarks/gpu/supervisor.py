"""Starts the process that measures, and starts another for the rest should it end before its time.

An error of a GPU leaves its process unable to use it, and a hung kernel can only be ended with the
process that launched it. Knows neither torch nor stages.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STATE, FINISHED = "state.json", "finished"
"""Files of the work directory: the first holds what is known so far."""
_SHARED_MEMORY = Path("/dev/shm")
"""Checkpoints are read as soon as they are written: a disk would only cost time."""
_ROOM_BYTES = 12 << 30
_MAX_STARTS = 12
"""More than there are stages, of which each start takes one at least."""


def supervise(command: Sequence[str]) -> int:
    """Run `command`, with `--work DIRECTORY` and `--ended STATUS` of the one before, to the end.

    Returns:
        The exit status of the one that finished, or of one that did not even begin.
    """
    status = 0
    with _work_directory() as directory:
        for _ in range(_MAX_STARTS):
            arguments = ["--work", str(directory), "--ended", str(status)]
            status = subprocess.call([*command, *arguments])
            if (directory / FINISHED).exists() or not (directory / STATE).exists():
                break
    return status


@contextmanager
def _work_directory() -> Iterator[Path]:
    """For state and checkpoints; it goes, and the command with it, when this process is told to."""
    previous = signal.signal(signal.SIGTERM, _leave)
    has_room = _SHARED_MEMORY.exists() and shutil.disk_usage(_SHARED_MEMORY).free > _ROOM_BYTES
    try:
        with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY if has_room else None) as directory:
            yield Path(directory)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
