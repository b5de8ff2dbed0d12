"""Qwen3 Ray's `LLM` as a user would start it, in exact mode.

Prompt lookup is off: the random model repeats itself, and guessing that right is no work that the
others do. Each stream has a thread of its own, so that its tokens are seen as they come.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import qwen3_ray
from benchmarks.peers.workers.protocol import Generate, serve
from qwen3_ray import LLM, SamplingParams


def load(model_dir: Path, max_model_len: int) -> Generate:
    """See `protocol.Load`."""
    llm = LLM(model=model_dir, max_model_len=max_model_len, num_speculative_tokens=0)

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)

        def arrivals(prompt: list[int]) -> list[float]:
            pieces = llm.stream({"prompt_token_ids": prompt}, params)
            return [time.perf_counter() for piece in pieces for _ in piece.token_ids]

        with ThreadPoolExecutor(len(prompts)) as pool:
            of_prompts = list(pool.map(arrivals, prompts))
        if any(len(times) != num_tokens for times in of_prompts):
            raise RuntimeError("an output has another length than it should")
        return of_prompts

    return generate


if __name__ == "__main__":
    serve(load, qwen3_ray.__version__)
