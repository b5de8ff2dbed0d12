"""Whole workloads through `LLM`, as users run them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.gpu import floors
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import release
from benchmarks.gpu.record import Record
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.workload import LAST_TOKEN_ID, TEMPERATURE, Job, jobs
from qwen3_ray import LLM, SamplingParams
from qwen3_ray.config import Numerics
from qwen3_ray.engine.prompts import TokensPrompt

_CASES: tuple[tuple[str, Numerics], ...] = (
    ("large", "fast"),
    ("small", "fast"),
    ("large", "exact"),
    ("small", "exact"),
)
_SECONDS_A_CASE = 25.0


def run_workloads(setup: Setup, record: Record, deadline: Deadline) -> None:
    """The stage: what matters most comes first."""
    sizes = setup.sizes
    vocab_size = min(setup.config(shape).vocab_size for shape in (sizes.small, sizes.large))
    work = jobs(sizes.num_jobs, *sizes.job_lens, min(LAST_TOKEN_ID, vocab_size - 1))
    for which, numerics in _CASES:
        shape = sizes.large if which == "large" else sizes.small
        name = f"workload of {shape}, {numerics}"
        if setup.is_gpu and not deadline.has(_SECONDS_A_CASE):
            record.skip(name, "no time left")
            continue
        release()
        with record.part(name):
            _run(setup, record, shape, numerics, work)


def _run(setup: Setup, record: Record, shape: str, numerics: Numerics, work: Sequence[Job]) -> None:
    start = time.perf_counter()
    with open_llm(setup, shape, numerics, max_num_seqs=len(work)) as llm:
        ready_s = time.perf_counter() - start
        seconds, num_steps = _generate(llm, work)
    num_tokens = sum(job.output_len for job in work)
    floor = floors.workload_s(setup.cost(shape), setup.ceilings, work)
    shortest, longest = setup.sizes.job_lens
    record.row(
        f"{len(work)} requests of {shortest} to {longest} tokens in and out, through LLM",
        model=shape, mode=numerics, ready_s=ready_s, seconds=seconds, steps=num_steps,
        output_tokens_per_s=num_tokens / seconds, floor_tokens_per_s=num_tokens / floor,
        percent_of_floor=100 * floor / seconds,
    )  # fmt: skip


def open_llm(setup: Setup, shape: str, numerics: Numerics, *, max_num_seqs: int) -> LLM:
    """An engine for as long as the jobs are; without what would change their work."""
    return LLM(
        setup.checkpoints.of(shape),
        device="cuda" if setup.is_gpu else "cpu",
        numerics=numerics,
        max_num_seqs=max_num_seqs,
        max_model_len=2 * setup.sizes.job_lens[1] + 1,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        num_speculative_tokens=0,
        generation_config="none",
    )


def _generate(llm: LLM, work: Sequence[Job]) -> tuple[float, int]:
    """Seconds and steps."""
    llm.generate({"prompt_token_ids": list(work[0].prompt[:8])}, SamplingParams(max_tokens=4))
    prompts = [TokensPrompt(prompt_token_ids=list(job.prompt)) for job in work]
    params = [
        SamplingParams(
            temperature=TEMPERATURE, ignore_eos=True, max_tokens=job.output_len, seed=seed
        )
        for seed, job in enumerate(work)
    ]
    steps_before = llm.stats.num_steps
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    lens = [len(output.outputs[0].token_ids) for output in outputs]
    if lens != [job.output_len for job in work]:
        raise ValueError("an output has not the length that was asked for")
    return seconds, llm.stats.num_steps - steps_before
