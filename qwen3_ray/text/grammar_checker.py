"""Grammars tried out where they can do no harm: in child processes that may be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import qwen3_ray
from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs

CHECK_LIMIT_S = 2.0
"""For one form, however busy the machine is; `grammar_worker` bounds the processor time."""
_START_LIMIT_S = 30.0


class GrammarChecker:
    """Tells of a form whether the library compiles it soon and soundly. Any thread may use it.

    The library bounds much, but not everything: a schema with a long chain of references
    overflows its stack, and the intersection of two dozen patterns takes it minutes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Below: guarded by `_lock`.
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._is_closed = False

    def lark_of(self, form: StructuredOutputs) -> str:
        """The form's grammar, tried out, as llguidance takes it.

        Raises:
            RequestError: it is no grammar, or too much for the library.
        """
        worker = self._take()
        try:
            answer = worker.ask(form)
        except BaseException:
            self._replace(worker)
            raise
        with self._lock:
            self._idle.append(worker)
        if "error" in answer:
            raise RequestError("structured_outputs", answer["error"])
        return answer["lark"]

    def close(self) -> None:
        """End the processes, those at work too: what they were asked is refused."""
        with self._lock:
            self._is_closed = True
            for worker in self._workers:
                worker.kill()
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.close()

    def _take(self) -> _Worker:
        with self._lock:
            return self._idle.pop() if self._idle else self._start()

    def _start(self) -> _Worker:
        if self._is_closed:
            raise RequestError("structured_outputs", "cannot be served: the engine has stopped")
        worker = _Worker()
        self._workers.add(worker)
        return worker

    def _replace(self, worker: _Worker) -> None:
        """Give a worker up; the next one starts while nobody waits for it."""
        worker.close()
        with self._lock:
            self._workers.discard(worker)
            if not self._is_closed:
                self._idle.append(self._start())


class _Worker:
    """One child process, which starts while nobody waits for it."""

    def __init__(self) -> None:
        package_root = str(Path(qwen3_ray.__file__).parents[1])
        search_path = [package_root, os.environ.get("PYTHONPATH", "")]
        self._is_ready = False
        self._process = subprocess.Popen(
            # -P: a module in the user's directory must not stand in for a library's.
            [sys.executable, "-P", "-m", "qwen3_ray.text.grammar_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
            start_new_session=True,  # Ctrl-C is for the parent
        )

    def ask(self, form: StructuredOutputs) -> dict[str, str]:
        """The answer to a form.

        Raises:
            RequestError: it took too long, or crashed; the process is of no more use.
        """
        self._wait_ready()
        assert self._process.stdin is not None  # noqa: S101  (it is a pipe)
        line = json.dumps(asdict(form)).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer: dict[str, str] = json.loads(self._read_line(CHECK_LIMIT_S))
        except TimeoutError:
            problem = f"takes more than {CHECK_LIMIT_S:g} s to compile"
        except (EOFError, OSError):
            problem = _describe(self._process.wait())
        else:
            return answer
        raise RequestError("structured_outputs", problem)

    def _wait_ready(self) -> None:
        if self._is_ready:
            return
        try:
            self._read_line(_START_LIMIT_S)
        except (EOFError, TimeoutError) as error:
            raise RequestError(
                "structured_outputs", "cannot be served: the grammar checker does not start"
            ) from error
        self._is_ready = True

    def kill(self) -> None:
        """End the process, whatever it does; `close` must follow."""
        self._process.kill()

    def close(self) -> None:
        """End the process, if it lives, and let go of its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close() if pipe is not None else None

    def _read_line(self, limit_s: float) -> bytes:
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe)
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + limit_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = max(0.0, deadline - time.monotonic())
            if not poll.poll(left_s * 1000):
                raise TimeoutError
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise EOFError
            line += data
        return line


def _describe(status: int) -> str:
    if status == -signal.SIGPROF:
        return "takes too much processor time to compile"
    return "is too deep or too large for the grammar library"
