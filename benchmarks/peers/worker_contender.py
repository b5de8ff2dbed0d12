"""An engine that generates in a worker process, which stays up over the rounds."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.contender import ContenderError, Facts, last_lines, log_path
from benchmarks.peers.processes import stop_tree
from benchmarks.peers.work import Case, PromptSource, Work

WARM_UP_LEN = 16


class WorkerContender:
    """Talks to `benchmarks.peers.workers`, in the Python environment of the engine."""

    def __init__(
        self,
        name: str,
        work: Work,
        *,
        python: Path,
        module: str,
        model_dir: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.facts = Facts()
        self._work = work
        self._command = [
            str(python), "-m", f"benchmarks.peers.workers.{module}", str(model_dir),
            str(work.max_model_len),
        ]  # fmt: skip
        self._environment = {**os.environ, **(environment or {})}
        self._log_path = log_path(f"{name}-offline")
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """See `Contender`."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """See `Contender`."""
        start = time.perf_counter()
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        with self.facts.memory.watching(self._process.pid):
            ready = self._answer(self._process)
        self.facts.start_s.append(time.perf_counter() - start)
        self.facts.version = str(ready["version"])
        self.facts.load_s.append(float(str(ready["ready_s"])))
        prompts = PromptSource(self._work, seed="warm-up")
        self._generate(prompts.take(1, WARM_UP_LEN), 4)
        self._generate(prompts.take(1, self._work.prefill_len), 1)

    def measure(self, case: Case, prompts: PromptSource) -> dict[str, float]:
        """See `Contender`."""
        work = self._work
        if case.kind == "prefill":
            took = self._generate(prompts.take(1, work.prefill_len), 1)
            return {"tokens_per_s": work.prefill_len / took["seconds"]}
        took = self._generate(prompts.take(case.num_streams, work.prompt_len), work.output_len + 1)
        if "first_s" in took:
            return {"tokens_per_s": took["num_after"] / (took["seconds"] - took["first_s"])}
        # Other prompts with one output token take as long as these took until theirs.
        others = self._generate(prompts.take(case.num_streams, work.prompt_len), 1)
        num_tokens = case.num_streams * work.output_len
        return {"tokens_per_s": num_tokens / (took["seconds"] - others["seconds"])}

    def close(self) -> None:
        """See `Contender`."""
        if self._process is None:
            return
        stop_tree(self._process.pid)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def _generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> dict[str, float]:
        process = self._process
        if process is None or process.stdin is None:
            raise ContenderError("was not started")
        order = json.dumps({"prompts": prompts, "num_tokens": num_tokens})
        try:
            process.stdin.write(order + "\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise ContenderError(last_lines(self._log_path)) from error
        return {key: float(str(value)) for key, value in self._answer(process).items()}

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, object]:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise ContenderError(last_lines(self._log_path))
        answer: dict[str, object] = json.loads(line)
        return answer
