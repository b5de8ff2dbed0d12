"""What exact mode costs: tokens a second in exact and in fast mode, in turns.

    python -m benchmarks.exact_price
    python -m benchmarks.exact_price --shape 0.6b

Both engines live in this process and take turns at every round, so that the machine's moods meet
both. Drafts and the prefix cache are off: the kernels alone differ. Prints medians over the rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.engine_runs import MODELS, generate, model_dir, running_engine
from qwen3_ray.config import EngineConfig, Numerics
from qwen3_ray.engine.engine import Engine
from qwen3_ray.sampling_params import SamplingParams

MODES: tuple[Numerics, Numerics] = ("exact", "fast")


@dataclass(frozen=True, slots=True)
class Work:
    """Streams of equal length. Of one output token: prefill is what is timed, else decode."""

    num_streams: int
    prompt_len: int
    num_output_tokens: int

    @property
    def name(self) -> str:
        """For the table."""
        if self.num_output_tokens == 1:
            return f"prefill of {self.prompt_len} tokens"
        return f"decode, {self.num_streams} stream{'s' * (self.num_streams > 1)}"


WORKS = (
    Work(1, 512, 1),
    Work(1, 128, 65),
    Work(8, 128, 65),
    Work(16, 128, 65),
)


@dataclass(frozen=True, slots=True)
class Price:
    """Median tokens a second of one work in both modes."""

    work: Work
    exact: float
    fast: float

    @property
    def ratio(self) -> float:
        """Exact mode's speed over fast mode's; below 1 is what exactness costs."""
        return self.exact / self.fast


def tokens_per_s(engine: Engine, work: Work, rng: random.Random) -> float:
    """Speed of one run on new random prompts."""
    ids = range(engine.info.vocab_size)
    prompts = [rng.choices(ids, k=work.prompt_len) for _ in range(work.num_streams)]
    params = SamplingParams(temperature=0.0, max_tokens=work.num_output_tokens, ignore_eos=True)
    timing, _ = generate(engine, prompts, params)
    if work.num_output_tokens == 1:
        return work.num_streams * work.prompt_len / timing.prefill_seconds
    return timing.tokens_per_s


def measure(path: Path, works: Sequence[Work], *, num_rounds: int) -> list[Price]:
    """Median speeds of each work; the first round of each warms up and does not count."""
    speeds: dict[tuple[Work, Numerics], list[float]] = {}
    rng = random.Random(0)
    with ExitStack() as stack:
        engines = {
            mode: stack.enter_context(
                running_engine(
                    EngineConfig(
                        model_dir=path,
                        device="cpu",
                        numerics=mode,
                        max_model_len=max(w.prompt_len + w.num_output_tokens for w in works),
                        max_num_seqs=max(work.num_streams for work in works),
                        enable_prefix_caching=False,
                        num_speculative_tokens=0,
                    )
                )
            )
            for mode in MODES
        }
        for round_ in range(num_rounds + 1):
            order = MODES if round_ % 2 else MODES[::-1]
            for work in works:
                for mode in order:
                    speed = tokens_per_s(engines[mode], work, rng)
                    if round_ > 0:
                        speeds.setdefault((work, mode), []).append(speed)
    return [
        Price(work, *(statistics.median(speeds[work, mode]) for mode in MODES)) for work in works
    ]


def print_table(prices: Sequence[Price]) -> None:
    """One line for each work."""
    print(f"{'work':24} {'exact tok/s':>12} {'fast tok/s':>12} {'exact / fast':>13}")
    for price in prices:
        print(f"{price.work.name:24} {price.exact:12.1f} {price.fast:12.1f} {price.ratio:13.3f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=MODELS, default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    prices = measure(model_dir(options.shape), WORKS, num_rounds=options.rounds)
    print(f"{options.shape}, {torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    print_table(prices)


if __name__ == "__main__":
    main()
