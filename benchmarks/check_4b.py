"""Loads and runs a model of Qwen3-4B-Base's shape at TP = 2 and checks what it needs.

    make test-4b

Makes the checkpoint (8 GB of random weights under bench-work/) if it is not there. Fails if the
processes together need more than 14 GB, or if a rank reads bytes that another rank owns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.make_checkpoint import SHAPES, Shape
from qwen3_ray import LLM, SamplingParams

WORK_DIR = Path("bench-work")
MAX_MODEL_LEN = 2_048
SAMPLE_PERIOD_S = 0.25
BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run needed and gave; the sum of PSS counts shared pages once."""

    shape: str
    tensor_parallel_size: int
    load_s: float
    peak_pss_gb: float
    serving_pss_gb: float
    weight_bytes_read: tuple[int, ...]
    own_weight_bytes: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_tokens_per_s_of_8: float


class MemoryMeter:
    """Peak over time of the PSS of this process and everything below it."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-meter", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_PERIOD_S):
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes())


def tree_pss_bytes() -> int:
    """Sum of PSS of this process and everything below it, in bytes."""
    here = psutil.Process()
    total = 0
    for process in (here, *here.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue  # ended since it was listed
    return total


def own_weight_bytes(shape: Shape, tensor_parallel_size: int) -> int:
    """Bytes of one rank's share of a bf16 checkpoint: vectors whole, matrices in equal parts."""
    total = 0
    for _, size in shape.tensors():
        if len(size) == 1:
            total += size[0]
        else:
            total += size[0] * size[1] // tensor_parallel_size
    return total * BF16_BYTES


def checkpoint(shape_name: str) -> Path:
    """The checkpoint's directory; made first, in a process of its own, if it is not complete."""
    path = WORK_DIR / shape_name
    if not (path / "config.json").exists():
        print(f"making {path}", flush=True)
        command = [sys.executable, "-m", "benchmarks.make_checkpoint"]
        subprocess.run([*command, "--shape", shape_name, "--out", path], check=True)
    return path


def measure(shape_name: str, tensor_parallel_size: int) -> Report:
    """Load, generate, and say what it took."""
    path = checkpoint(shape_name)
    meter = MemoryMeter()
    with meter.running():
        start = time.perf_counter()
        with LLM(
            path,
            tensor_parallel_size=tensor_parallel_size,
            device="cpu",
            max_model_len=MAX_MODEL_LEN,
        ) as llm:
            load_s = time.perf_counter() - start
            prefill = tokens_per_s(llm, num_prompts=1, prompt_len=512, max_tokens=1)
            decode = tokens_per_s(llm, num_prompts=1, prompt_len=4, max_tokens=16)
            decode_of_8 = tokens_per_s(llm, num_prompts=8, prompt_len=4, max_tokens=16)
            serving_bytes = tree_pss_bytes()
            weight_bytes_read = llm.info.weight_bytes_read
    return Report(
        shape=shape_name,
        tensor_parallel_size=tensor_parallel_size,
        load_s=round(load_s, 1),
        peak_pss_gb=round(max(meter.peak_bytes, serving_bytes) / 1e9, 2),
        serving_pss_gb=round(serving_bytes / 1e9, 2),
        weight_bytes_read=weight_bytes_read,
        own_weight_bytes=own_weight_bytes(SHAPES[shape_name], tensor_parallel_size),
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        decode_tokens_per_s_of_8=decode_of_8,
    )


def tokens_per_s(llm: LLM, *, num_prompts: int, prompt_len: int, max_tokens: int) -> float:
    """Prompt tokens a second when one token is asked for, else output tokens a second."""
    prompts = [
        {"prompt_token_ids": [7 + row + column for column in range(prompt_len)]}
        for row in range(num_prompts)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    elapsed_s = time.perf_counter() - start
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == [max_tokens] * num_prompts, lengths  # noqa: S101
    num_tokens = num_prompts * (prompt_len if max_tokens == 1 else max_tokens)
    return round(num_tokens / elapsed_s, 2)


def problems(report: Report, max_pss_gb: float) -> list[str]:
    """What the run should not have needed."""
    found = []
    if report.peak_pss_gb > max_pss_gb:
        found.append(f"{report.peak_pss_gb} GB of memory, more than {max_pss_gb}")
    if len(report.weight_bytes_read) != report.tensor_parallel_size:
        found.append(f"{len(report.weight_bytes_read)} rank(s) told what they read")
    for rank, num_bytes in enumerate(report.weight_bytes_read):
        if num_bytes != report.own_weight_bytes:
            found.append(
                f"rank {rank} read {num_bytes} bytes, its share is {report.own_weight_bytes}"
            )
    return found


def main() -> int:
    """Command line; the exit status is 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--tensor-parallel-size", type=int, default=2)
    parser.add_argument("--max-pss-gb", type=float, default=14.0)
    options = parser.parse_args()
    report = measure(options.shape, options.tensor_parallel_size)
    print(json.dumps(asdict(report), indent=2))
    broken = problems(report, options.max_pss_gb)
    for problem in broken:
        print(f"FAILED: {problem}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
