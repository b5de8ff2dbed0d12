"""The offline workload of nano-vllm's public benchmark: 256 requests of random lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass

NUM_SEQS = 256
MIN_LEN, MAX_LEN = 100, 1_024
"""Of a prompt, and of an output, in tokens."""
LAST_TOKEN_ID = 10_000
TEMPERATURE = 0.6
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt, and how many tokens it is to be continued by, whatever they are."""

    prompt: tuple[int, ...]
    output_len: int


def jobs(
    num_seqs: int = NUM_SEQS,
    min_len: int = MIN_LEN,
    max_len: int = MAX_LEN,
    last_token_id: int = LAST_TOKEN_ID,
) -> list[Job]:
    """With the default sizes those that nano-vllm's `bench.py` draws, token by token."""
    rng = random.Random(_SEED)
    prompts = [
        tuple(rng.randint(0, last_token_id) for _ in range(rng.randint(min_len, max_len)))
        for _ in range(num_seqs)
    ]
    return [Job(prompt=prompt, output_len=rng.randint(min_len, max_len)) for prompt in prompts]
