"""An engine behind its HTTP server, which is there for its own turn alone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence

from benchmarks.peers.contender import ContenderError, Facts, last_lines, log_path
from benchmarks.peers.http_load import run_clients
from benchmarks.peers.processes import stop_tree
from benchmarks.peers.work import Case, PromptSource, Work

START_LIMIT_S = 900.0
POLL_S = 0.1
SERVED_NAME = "bench"
WARM_UP_TOKENS = 4


class ServerContender:
    """`qwen3-ray serve`, `llama-server`, vLLM's: all know OpenAI's completions."""

    def __init__(
        self,
        name: str,
        work: Work,
        *,
        version: str,
        command: Callable[[int], Sequence[str]],
        environment: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """`command` is given the port; `extra` are fields of each request."""
        self.name = name
        self.facts = Facts(version=version)
        self._work = work
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._extra = dict(extra or {})
        self._log_path = log_path(f"{name}-http")
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """See `Contender`."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """See `Contender`."""
        self._port = free_port()
        start = time.perf_counter()
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                list(self._command(self._port)), env=self._environment, stdout=log, stderr=log
            )
        with self.facts.memory.watching(self._process.pid):
            self._wait_ready(self._process)
        self.facts.start_s.append(time.perf_counter() - start)
        self._run(
            PromptSource(self._work, seed="warm-up").take(1, self._work.prompt_len), WARM_UP_TOKENS
        )

    def measure(self, case: Case, prompts: PromptSource) -> dict[str, float]:
        """See `Contender`."""
        work = self._work
        count = case.num_streams * work.requests_per_client
        return self._run(prompts.take(count, work.prompt_len), work.output_len, case.num_streams)

    def close(self) -> None:
        """See `Contender`."""
        if self._process is not None:
            stop_tree(self._process.pid)
            self._process.wait()
            self._process = None

    def _run(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, num_clients: int = 1
    ) -> dict[str, float]:
        body = {
            "model": SERVED_NAME,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        of_clients = [prompts[index::num_clients] for index in range(num_clients)]
        try:
            return asyncio.run(run_clients(self._port, of_clients, body))
        except (OSError, asyncio.IncompleteReadError, json.JSONDecodeError) as error:
            raise ContenderError(f"a request failed: {error}") from error

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        url = f"http://127.0.0.1:{self._port}/health"
        limit = time.perf_counter() + START_LIMIT_S
        while not _answers(url):
            if process.poll() is not None or time.perf_counter() > limit:
                raise ContenderError(last_lines(self._log_path))
            time.sleep(POLL_S)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
