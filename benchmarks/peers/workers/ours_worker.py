"""Qwen3 Ray's `LLM` as a user would start it, in exact mode.

Prompt lookup is off: the random model repeats itself, and guessing that right is no work that the
others do.
"""

from __future__ import annotations

from pathlib import Path

import qwen3_ray
from benchmarks.peers.workers.protocol import Generate, serve
from qwen3_ray import LLM, SamplingParams


def load(model_dir: Path, max_model_len: int) -> Generate:
    """See `protocol.Load`."""
    llm = LLM(model=model_dir, max_model_len=max_model_len, num_speculative_tokens=0)

    def generate(prompts: list[list[int]], num_tokens: int) -> list[float]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
        if any(len(output.outputs[0].token_ids) != num_tokens for output in outputs):
            raise RuntimeError("an output has another length than it should")
        return []

    return generate


if __name__ == "__main__":
    serve(load, qwen3_ray.__version__)
