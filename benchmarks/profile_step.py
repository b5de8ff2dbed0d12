"""Where a decode step's time goes, by part, at several numbers of running requests.

    python -m benchmarks.profile_step                                # the bundled model
    python -m benchmarks.profile_step --model DIR --requests 1 8 16
    python -m benchmarks.profile_step --only logits --json

An `EngineLoop` runs its steps, in its own thread, as it serves: first of a real model, whose
forward pass is told apart by kernel where the model calls its kernels one by one; then, to see
what Python and sampling cost alone, of an engine whose logits of 151,936 ids are given. Each part
is what is spent in it but not in parts within it, so that parts add up to the step. Drafts are
off. Prints medians over steps in which all requests decode; to time parts costs 1 us a call.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch

from benchmarks.step_sections import TO_FRONT, SectionClock, is_model, place, timed_sections
from cluster.replica.channel import encode
from cluster.replica.messages import step_event
from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig, KVCacheDType
from qwen3_ray.distributed.control import StepArrays, StepControl
from qwen3_ray.engine.children import RankProcesses
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.engine.loop import EngineLoop
from qwen3_ray.engine.rank import build_engine
from qwen3_ray.engine.stats import EngineInfo, EngineStats
from qwen3_ray.request import GenerateRequest, TokenDelta
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_mix import MIX

VOCAB_SIZE, NUM_KNOWN_IDS = 151_936, 151_669
"""Of Qwen3: the model's logits, and the tokenizer's tokens."""
NUM_WARM_UPS = 4
MAX_TOKENS = 1_000
BLOCK_SIZE = 32
GOALS_MS = {64: 3.0, 256: 8.0}
"""For all but the forward pass and the head, at so many requests."""
KINDS: dict[str, Sequence[SamplingParams]] = {
    "greedy": [SamplingParams(temperature=0)],
    "temperature 1": [SamplingParams()],
    "mixed parameters": [SamplingParams(max_tokens=MAX_TOKENS, **fields) for fields in MIX],
}


class GivenLogits(ModelRunner):
    """In place of a model: the same logits in every step."""

    def __init__(self, num_rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator)

    def execute(self, arrays: StepArrays) -> torch.Tensor:
        """See `ModelRunner`."""
        return self._logits[: arrays.num_logits]


def engine_of_logits(num_requests: int, prompt_len: int) -> Engine:
    """An engine without a model, for at most so many requests of that length."""
    max_model_len = prompt_len + MAX_TOKENS
    num_blocks = num_requests * -(-max_model_len // BLOCK_SIZE)
    executor = GroupExecutor(
        control=StepControl(None, 0, 1),
        runner=GivenLogits(num_requests),
        sampler=Sampler(num_valid_token_ids=NUM_KNOWN_IDS, device=torch.device("cpu")),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
    )
    info = EngineInfo(
        model_name="given logits",
        numerics_fingerprint="",
        exact=False,
        block_size=BLOCK_SIZE,
        max_model_len=max_model_len,
        vocab_size=NUM_KNOWN_IDS,
        tensor_parallel_size=1,
        eos_token_ids=frozenset(),
    )
    num_tokens = num_requests * prompt_len
    return Engine(executor, info, max_num_seqs=num_requests, max_num_batched_tokens=num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Medians over the steps of one number of requests, in milliseconds."""

    work: str
    num_requests: int
    step_ms: float
    overhead_ms: float
    """All but the forward pass and the head."""
    parts_ms: dict[str, float]
    """In the order of a step."""

    @classmethod
    def of(cls, work: str, num_requests: int, laps: Sequence[dict[str, float]]) -> Profile:
        """What the seconds of several steps come to."""
        names = sorted({name for lap in laps for name in lap}, key=place)
        overheads = [sum(lap[name] for name in lap if not is_model(name)) for lap in laps]
        return cls(
            work=work,
            num_requests=num_requests,
            step_ms=_median_ms([sum(lap.values()) for lap in laps]),
            overhead_ms=_median_ms(overheads),
            parts_ms={name: _median_ms([lap.get(name, 0.0) for lap in laps]) for name in names},
        )


def _median_ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


class StepProfiler:
    """Runs requests on an engine of its own and times the steps in which all of them decode."""

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._clock = SectionClock()
        self._encode = self._clock.wrap(TO_FRONT, lambda *args: encode(step_event(*args)))
        self._loop = EngineLoop(build, self._on_step)
        self._num_requests = self._num_laps = self._num_prompt_tokens = 0
        self._laps: list[dict[str, float]] = []
        self._done = threading.Event()
        self._done.set()

    @contextmanager
    def running(self) -> Iterator[EngineInfo]:
        """Build the engine, and end it when the block is left."""
        self._loop.start()
        try:
            info = self._loop.wait_ready()
            with timed_sections(self._clock, GivenLogits):
                yield info
        finally:
            self._loop.stop()

    def profile(self, work: str, requests: Sequence[GenerateRequest], num_steps: int) -> Profile:
        """Medians of `num_steps` steps of `requests`, which are aborted then.

        Raises:
            EngineError: the engine failed.
        """
        self._laps, self._num_requests = [], len(requests)
        self._num_laps = NUM_WARM_UPS + num_steps
        self._done.clear()
        self._loop.submit(requests)
        self._done.wait()
        self._loop.submit(aborts=[request.request_id for request in requests])
        return Profile.of(work, len(requests), self._laps[NUM_WARM_UPS:])

    def _on_step(self, deltas: list[TokenDelta], stats: EngineStats) -> None:
        self._encode(deltas, stats)
        lap = self._clock.lap()
        if self._loop.error is not None:
            self._done.set()  # `submit` raises then
        if self._done.is_set():
            return
        only_decoded = stats.num_prompt_tokens == self._num_prompt_tokens
        self._num_prompt_tokens = stats.num_prompt_tokens
        if only_decoded and len(deltas) == self._num_requests:
            self._laps.append(lap)
            if len(self._laps) == self._num_laps:
                self._done.set()


def make_requests(
    name: str, count: int, prompt_len: int, vocab_size: int, kinds: Sequence[SamplingParams]
) -> list[GenerateRequest]:
    """Random prompts that share nothing, with parameters of each kind in turns."""
    rng, ids = random.Random(name), range(vocab_size)
    return [
        GenerateRequest(
            request_id=f"{name} {index}",
            prompt_token_ids=tuple(rng.choices(ids, k=prompt_len)),
            params=replace(
                kinds[index % len(kinds)], seed=index, max_tokens=MAX_TOKENS, ignore_eos=True
            ),
        )
        for index in range(count)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much is profiled."""

    nums_requests: Sequence[int]
    prompt_len: int
    num_steps: int


def profile_model(
    model_dir: Path,
    tensor_parallel_size: int,
    work: Work,
    *,
    kv_cache_dtype: KVCacheDType = "auto",
) -> list[Profile]:
    """Of a checkpoint, greedy."""
    config = EngineConfig(
        model_dir=model_dir,
        device="cpu",
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=work.prompt_len + MAX_TOKENS,
        max_num_seqs=max(work.nums_requests),
        num_speculative_tokens=0,
        kv_cache_dtype=kv_cache_dtype,
    )
    with tempfile.TemporaryDirectory() as directory:
        ranks = RankProcesses(config, Path(directory))
        try:
            profiler = StepProfiler(
                lambda: build_engine(
                    config, rendezvous_dir=Path(directory), check_peers=ranks.check
                )
            )
            name = f"{model_dir.name}, TP {tensor_parallel_size}, keys and values {kv_cache_dtype}"
            return _profile(profiler, name, work, {"greedy": KINDS["greedy"]})
        finally:
            ranks.close(grace_s=5.0)


def profile_logits(work: Work) -> list[Profile]:
    """Of given logits, with parameters of each of `KINDS`."""
    most = max(work.nums_requests)
    profiler = StepProfiler(lambda: engine_of_logits(most, work.prompt_len))
    return _profile(profiler, "given logits", work, KINDS)


def _profile(
    profiler: StepProfiler, name: str, work: Work, kinds: dict[str, Sequence[SamplingParams]]
) -> list[Profile]:
    profiles = []
    with profiler.running() as info:
        for kind, params in kinds.items():
            title = f"{name}, {kind}"
            for count in work.nums_requests:
                requests = make_requests(
                    f"{title}, {count}", count, work.prompt_len, info.vocab_size, params
                )
                profiles.append(profiler.profile(title, requests, work.num_steps))
    return profiles


def print_tables(profiles: Sequence[Profile]) -> None:
    """One table for each work: parts down, numbers of requests across."""
    for title in dict.fromkeys(profile.work for profile in profiles):
        some = [profile for profile in profiles if profile.work == title]
        names = sorted({name for profile in some for name in profile.parts_ms}, key=place)
        print(f"\n{title}: ms of a step")
        _print_row("requests", [str(profile.num_requests) for profile in some])
        for name in names:
            _print_row(name, [f"{profile.parts_ms.get(name, 0.0):.3f}" for profile in some])
        _print_row("the step", [f"{profile.step_ms:.3f}" for profile in some])
        _print_row("without forward and head", [f"{profile.overhead_ms:.3f}" for profile in some])
    goals = ", ".join(f"{goal:g} ms at {count}" for count, goal in GOALS_MS.items())
    print(f"\n{torch.get_num_threads()} threads; goals without forward and head: {goals}")


def _print_row(name: str, values: Sequence[str]) -> None:
    print(f"{name:36}" + "".join(f"{value:>11}" for value in values))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL_DIR, help="checkpoint directory")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument(
        "--kv-cache-dtype", choices=get_args(KVCacheDType), nargs="+", default=["auto"]
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 16, 64, 256])
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--only", choices=("model", "logits"), help="one of the two parts alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    work = Work(
        nums_requests=options.requests, prompt_len=options.prompt_len, num_steps=options.steps
    )
    profiles = []
    if options.only != "logits":
        for kv_cache_dtype in options.kv_cache_dtype:
            profiles += profile_model(
                options.model, options.tensor_parallel_size, work, kv_cache_dtype=kv_cache_dtype
            )
    if options.only != "model":
        profiles += profile_logits(work)
    if options.json:
        print(json.dumps([asdict(profile) for profile in profiles], indent=1))
    else:
        print_tables(profiles)


if __name__ == "__main__":
    main()
