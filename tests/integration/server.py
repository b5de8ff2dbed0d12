"""A `qwen3-ray serve` process on free ports, as a user would start it, and what it is made of."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc
import httpx
import psutil

from protos.v1.generate_pb2 import GetModelInfoRequest
from protos.v1.generate_pb2_grpc import GenerateServiceStub

START_LIMIT_S = 120.0
COMMAND_LIMIT_S = 90.0
FAST_START = ("--max-model-len", "4096", "--kv-cache-memory", str(64 << 20))


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def eventually(condition: Callable[[], bool], *, limit_s: float, what: str) -> float:
    """Wait until `condition` holds; the seconds it took."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < limit_s, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start


def command_environment(directory: Path, cache_dir: Path) -> dict[str, str]:
    """The caller's environment with a home, a temporary directory and a cache of the test's own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    own = {"HOME": directory / "home", "TMPDIR": directory / "t", "XDG_CACHE_HOME": cache_dir}
    return {**environment, **{name: str(path) for name, path in own.items()}}


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a short path: Unix sockets in it have at most 107 characters."""
    directory = Path(tempfile.mkdtemp(prefix="q3-", dir="/tmp"))
    for name in ("home", "t"):
        (directory / name).mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A `qwen3-ray` command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
    )


class Server:
    """The process, its two ports, and its whole tree of processes."""

    def __init__(self, directory: Path, cache_dir: Path, *flags: str) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self.directory = directory
        ports = ("--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port))
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster", "serve", *ports, *flags],
            env=command_environment(directory, cache_dir),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stdout = _Lines(self.process.stdout)
        self.stderr = _Lines(self.process.stderr)
        self.start_s = 0.0

    def wait_ready(self) -> str:
        """The line that says so."""

        def ready() -> bool:
            assert self.process.poll() is None, f"exited early: {self.stderr.lines}"
            return any(line.startswith("Ready:") for line in self.stdout.lines)

        try:
            eventually(ready, limit_s=START_LIMIT_S, what=f"Ready, after {self.stderr.lines}")
        except BaseException:
            self.kill()
            raise
        self.start_s = time.monotonic() - self._started_at
        return self.stdout.lines[-1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def post(self, body: object, *, timeout_s: float = 60.0) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=timeout_s)

    def num_replicas(self) -> int:
        """Replicas that the router can reach now."""
        with grpc.insecure_channel(self.target) as channel:
            info = GenerateServiceStub(channel).GetModelInfo(GetModelInfoRequest(), timeout=10)
        return int(info.num_replicas)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Processes of the tree whose command line contains `title`."""
        root = psutil.Process(self.process.pid)
        return [p for p in (root, *root.children(recursive=True)) if title in _command_line(p)]

    def pss_bytes(self) -> int:
        """Memory of the whole tree, shared pages divided among those who share them."""
        return sum(map(_pss_bytes, self.processes()))

    def stop(self, limit_s: float = 60.0) -> int:
        """Send SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def kill(self) -> None:
        """End the whole tree, whatever state it is in."""
        if self.process.poll() is None:
            for process in self.processes():
                process.kill()
            self.process.wait(30)
        self.stdout.close()
        self.stderr.close()


@contextmanager
def running_server(cache_dir: Path, *flags: str) -> Iterator[Server]:
    """A server that has said Ready; killed at the end if the test has not stopped it.

    Servers with one `cache_dir` share compiled kernels.
    """
    with short_directory() as directory:
        server = Server(directory, cache_dir, *FAST_START, *flags)
        try:
            server.wait_ready()
            yield server
        finally:
            server.kill()


class _Lines:
    """Lines of a pipe as they come."""

    def __init__(self, pipe: IO[str] | None) -> None:
        assert pipe is not None
        self.lines: list[str] = []
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the pipe's end, which comes with the last process that holds it; idempotent."""
        self._thread.join(30)
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            self.lines.append(line.rstrip("\n"))


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
