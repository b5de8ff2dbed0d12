"""The side of a worker process: one JSON line in, one JSON line out.

Runs in the environments of the peers, so it needs nothing but the standard library. The first line
out says that the model is loaded: `{"version": ..., "ready_s": ...}`. Then each line
`{"prompts": [[...]], "num_tokens": n}` is answered by `{"seconds": ..., "first_s": ...}` when all
prompts have n output tokens; `first_s` is missing where the time of the first ones is not known.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Generate = Callable[[list[list[int]], int], list[float]]
"""Prompts and output tokens of each -> `time.perf_counter()` after each step, or nothing."""
Load = Callable[[Path, int], Generate]
"""Model directory and longest prompt plus output -> what generates with it."""


def serve(load: Load, version: str) -> None:
    """Load the model that the command line names and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    start = time.perf_counter()
    generate = load(Path(sys.argv[1]), int(sys.argv[2]))
    ready = {"version": version, "ready_s": time.perf_counter() - start}
    answers.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(json.dumps(timed(generate, order["prompts"], order["num_tokens"])) + "\n")


def timed(generate: Generate, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
    """What one call took. A step for each token means that the first one computed all prompts."""
    start = time.perf_counter()
    stamps = generate(prompts, num_tokens)
    seconds = time.perf_counter() - start
    if len(stamps) == num_tokens:
        return {"seconds": seconds, "first_s": stamps[0] - start}
    return {"seconds": seconds}
