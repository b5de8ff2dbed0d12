"""The side of a worker process: one JSON line in, one JSON line out.

Runs in the environments of the peers, so it needs nothing but the standard library. The first line
out says that the model is loaded: `{"version": ..., "ready_s": ...}`. Then each line
`{"prompts": [[...]], "num_tokens": n}` is answered by `{"seconds": ..., "first_s": ...,
"num_after": ...}` when all prompts have n output tokens: the time until each had its first one, and
how many tokens came after that. Both are missing where single tokens are not seen.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Generate = Callable[[list[list[int]], int], list[list[float]]]
"""Prompts and output tokens of each -> when each token of each came, or nothing at all."""
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
    """What one call took."""
    start = time.perf_counter()
    arrivals = generate(prompts, num_tokens)
    seconds = time.perf_counter() - start
    if not arrivals:
        return {"seconds": seconds}
    first = max(times[0] for times in arrivals)
    num_after = sum(at > first for times in arrivals for at in times)
    return {"seconds": seconds, "first_s": first - start, "num_after": num_after}


def of_steps(stamps: list[float], num_prompts: int, num_tokens: int) -> list[list[float]]:
    """Arrivals of an engine that tells its steps, if each of them gave every prompt a token."""
    return [stamps] * num_prompts if len(stamps) == num_tokens else []
