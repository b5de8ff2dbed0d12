"""What guessing ahead by prompt lookup brings: steps and time with it and without, in turns.

    python -m benchmarks.speculation
    python -m benchmarks.speculation --shape 0.6b --streams 1

A repetitive text decoded greedily is where it pays; random ids sampled at temperature 1 are where
it must cost nothing. The prefix cache is off. Both engines live in this process and take turns.
Fails if an output differs: drafts may change the time alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch

from benchmarks.engine_runs import MODELS, Timing, generate, model_dir, running_engine
from qwen3_ray.config import EngineConfig
from qwen3_ray.engine.engine import Engine
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.tokenizer import find_tokenizer

NUM_DRAFTS = 4
MAX_MODEL_LEN = 512
TEXT = "Row, row, row your boat, gently down the stream. Merrily, merrily, life is but a dream.\n"
_MAX_PROMPT_LEN = 200


@dataclass(frozen=True, slots=True)
class Work:
    """Prompts of one kind, and how they go on."""

    name: str
    prompts: Sequence[Sequence[int]]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Gain:
    """One work with drafts and without; seconds are medians over the rounds."""

    name: str
    num_tokens: int
    num_steps: tuple[int, int]
    """Decode steps with drafts, and without."""
    num_drafts: int
    """Rows that verified a guess."""
    num_accepted: int
    seconds: tuple[float, float]
    is_equal: bool
    """Whether all outputs were the same."""

    @property
    def fewer_steps(self) -> float:
        """How many times as many steps it takes without drafts."""
        return self.num_steps[1] / self.num_steps[0]

    @property
    def speed(self) -> float:
        """How many times as long it takes without drafts."""
        return self.seconds[1] / self.seconds[0]


def make_works(path: Path, vocab_size: int, *, num_streams: int, num_tokens: int) -> list[Work]:
    """Repetitive and random; a model without a tokenizer repeats a phrase of random ids."""
    rng = random.Random(0)
    ids = range(1, vocab_size)
    tokenizer = find_tokenizer(path)
    phrase = tokenizer.encode(TEXT) if tokenizer else rng.choices(ids, k=24)
    repeated = (phrase * (1 + _MAX_PROMPT_LEN // len(phrase)))[:_MAX_PROMPT_LEN]
    greedy = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    drawn = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True)
    noise = [rng.choices(ids, k=_MAX_PROMPT_LEN) for _ in range(num_streams)]
    return [
        Work("repetitive, greedy", [repeated[stream:] for stream in range(num_streams)], greedy),
        Work("random, sampled", noise, drawn),
    ]


def measure(engines: tuple[Engine, Engine], work: Work, *, num_rounds: int) -> Gain:
    """Run `work` on the engine with drafts and the one without; a first round does not count."""
    timings: tuple[list[Timing], list[Timing]] = ([], [])
    is_equal = True
    for round_ in range(num_rounds + 1):
        outputs = []
        before = engines[0].stats()
        for index in (0, 1) if round_ % 2 else (1, 0):
            timing, output = generate(engines[index], work.prompts, work.params)
            outputs.append(output)
            timings[index].append(timing)
        is_equal &= outputs[0] == outputs[1]
    after = engines[0].stats()
    with_drafts, without = (
        statistics.median(timing.seconds for timing in one[1:]) for one in timings
    )
    return Gain(
        work.name,
        sum(map(len, outputs[0])),
        (timings[0][-1].num_steps, timings[1][-1].num_steps),
        after.num_draft_tokens - before.num_draft_tokens,
        after.num_accepted_tokens - before.num_accepted_tokens,
        (with_drafts, without),
        is_equal,
    )


def run(shape: str, *, num_streams: int, num_tokens: int, num_rounds: int) -> list[Gain]:
    """Build both engines and measure every work."""
    path = model_dir(shape)
    with ExitStack() as stack:
        with_drafts, without = (
            stack.enter_context(
                running_engine(
                    EngineConfig(
                        model_dir=path,
                        device="cpu",
                        numerics="exact",
                        max_model_len=MAX_MODEL_LEN,
                        max_num_seqs=num_streams,
                        enable_prefix_caching=False,
                        num_speculative_tokens=num_drafts,
                    )
                )
            )
            for num_drafts in (NUM_DRAFTS, 0)
        )
        works = make_works(
            path, with_drafts.info.vocab_size, num_streams=num_streams, num_tokens=num_tokens
        )
        return [measure((with_drafts, without), work, num_rounds=num_rounds) for work in works]


def print_table(gains: Sequence[Gain]) -> None:
    """One line for each work: with drafts, without, and the ratios."""
    print(
        f"{'work':20} {'tokens':>7} {'steps':>6} {'without':>8} {'ratio':>6} "
        f"{'drafts':>6} {'right':>6} {'ms':>8} {'without':>8} {'ratio':>6}"
    )
    for gain in gains:
        steps, seconds = gain.num_steps, gain.seconds
        print(
            f"{gain.name:20} {gain.num_tokens:7} {steps[0]:6} {steps[1]:8} "
            f"{gain.fewer_steps:6.2f} {gain.num_drafts:6} {gain.num_accepted:6} "
            f"{seconds[0] * 1e3:8.1f} {seconds[1] * 1e3:8.1f} "
            f"{gain.speed:6.3f}{'' if gain.is_equal else '  OUTPUTS DIFFER'}"
        )


def main() -> int:
    """Command line; the exit status is 1 when an output differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=MODELS, default="demo")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    gains = run(
        options.shape,
        num_streams=options.streams,
        num_tokens=options.tokens,
        num_rounds=options.rounds,
    )
    print(f"{options.shape}, {options.streams} stream(s), {torch.get_num_threads()} threads")
    print_table(gains)
    return 0 if all(gain.is_equal for gain in gains) else 1


if __name__ == "__main__":
    sys.exit(main())
