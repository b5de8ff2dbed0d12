"""llama.cpp without a server: its own benchmark programs, one run for each measurement."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence

from benchmarks.peers import places
from benchmarks.peers.contender import ContenderError, Facts, last_lines, log_path
from benchmarks.peers.work import Case, PromptSource, Work

CONTEXT = 8_192
"""Tokens of KV cache, over all sequences."""
COMMON = ("-b", "2048", "-ub", "512", "-fa", "1")
"""Rows of a step as given and as computed; flash attention, which is faster on CPU."""


class LlamaPrograms:
    """`llama-bench` for prefill and `llama-batched-bench` for decoding, f16 weights.

    The programs draw their own random token ids.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        self.facts = Facts()
        self._work = work
        self._log_path = log_path(f"{name}-offline")
        threads = str(os.cpu_count() or 1)
        self._threads = ("-t", threads)
        self._batch_threads = ("-tb", threads)

    @property
    def pid(self) -> None:
        """Nothing stays up."""

    def start(self) -> None:
        """Nothing to start."""
        self.facts.version = places.LLAMA_SDIST.partition("==")[2]

    def measure(self, case: Case, prompts: PromptSource) -> dict[str, float]:
        """See `Contender`."""
        work = prompts.work
        if case.kind == "prefill":
            output = self._run(
                "llama-bench", "-p", str(work.prefill_len), "-n", "0", "-r", "1", "-o", "json"
            )
            return {"tokens_per_s": prefill_rate(output)}
        output = self._run(
            "llama-batched-bench", "-c", str(CONTEXT), "-npp", str(work.prompt_len), "-ntg",
            str(work.output_len), "-npl", str(case.num_streams), *self._batch_threads,
            "--output-format", "jsonl",
        )  # fmt: skip
        return {"tokens_per_s": decode_rate(output, case.num_streams)}

    def close(self) -> None:
        """Nothing to end."""

    def _run(self, program: str, *options: str) -> str:
        command = [
            str(places.LLAMA_BIN / program), "-m", str(places.GGUF_FILE), *COMMON, *self._threads,
            *options,
        ]  # fmt: skip
        return self._output(command)

    def _output(self, command: Sequence[str]) -> str:
        with self._log_path.open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            with self.facts.memory.watching(process.pid):
                output, _ = process.communicate()
        if process.returncode:
            raise ContenderError(last_lines(self._log_path))
        return output


def prefill_rate(output: str) -> float:
    """Prompt tokens a second, of llama-bench's JSON."""
    (row,) = (row for row in json.loads(output) if row["n_prompt"])
    (rate,) = row["samples_ts"]
    return float(rate)


def decode_rate(output: str, num_streams: int) -> float:
    """Output tokens a second of all streams, of llama-batched-bench's JSON lines."""
    rows = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    (row,) = (row for row in rows if row["pl"] == num_streams)
    return float(row["speed_tg"])
