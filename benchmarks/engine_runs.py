"""One engine of one rank in this thread, step by step: what benchmarks of the engine share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.check_4b import checkpoint
from benchmarks.make_checkpoint import SHAPES
from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.rank import build_engine
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams

MODELS = ("demo", *SHAPES)
"""The bundled model, and shapes that are given random weights."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What generating took, from the step after the last first token on."""

    num_steps: int
    num_tokens: int
    seconds: float
    prefill_seconds: float
    """Up to and with the step that gave the last request its first token."""

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second, over all streams."""
        return self.num_tokens / self.seconds


def model_dir(name: str) -> Path:
    """Directory of one of `MODELS`; a random checkpoint is made if it is not there."""
    return DEMO_MODEL_DIR if name == "demo" else checkpoint(name)


@contextmanager
def running_engine(config: EngineConfig) -> Iterator[Engine]:
    """An engine that is ready; its thread counts are set in this thread."""
    with tempfile.TemporaryDirectory() as directory:
        engine = build_engine(config, rendezvous_dir=Path(directory))
        try:
            yield engine
        finally:
            engine.close()


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> tuple[Timing, list[list[int]]]:
    """Run `prompts` together to their ends; what it took, and the output of each."""
    outputs: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        one = replace(params, seed=index)
        engine.add_request(
            GenerateRequest(request_id=str(index), prompt_token_ids=tuple(prompt), params=one)
        )
    start = time.perf_counter()
    while not all(outputs):
        _step(engine, outputs)
    started = time.perf_counter()
    num_first = sum(map(len, outputs))
    num_steps = 0
    while engine.has_unfinished:
        _step(engine, outputs)
        num_steps += 1
    end = time.perf_counter()
    num_tokens = sum(map(len, outputs)) - num_first
    return Timing(num_steps, num_tokens, end - started, started - start), outputs


def _step(engine: Engine, outputs: list[list[int]]) -> None:
    for delta in engine.step():
        outputs[int(delta.request_id)] += delta.token_ids
