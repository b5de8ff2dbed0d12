"""What sampling costs: 64 requests with mixed parameters against the step that makes their logits.

    python -m benchmarks.sampling_cost

The model has the 0.6B shape, all its layers and random weights; each request is at 192 tokens of
context. Steps and their sampling are timed in turns, so that the machine's moods meet both. The
mix is the one of the test (`tests/qwen3_ray/runner/sampling_mix.py`). A kind's share is what its
four requests take alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch

from benchmarks.check_4b import checkpoint
from benchmarks.make_checkpoint import SHAPES
from qwen3_ray.config import EngineConfig
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.engine.rendezvous import Rendezvous
from qwen3_ray.engine.startup import Rank, start_rank
from qwen3_ray.runner.input_batch import build
from qwen3_ray.runner.sampler import Sampler
from tests.qwen3_ray.runner.sampling_mix import CONTEXT_LEN, MIX, NUM_REQUESTS, mixed_requests

NUM_WARM_UPS = 2
NUM_KNOWN_IDS = 151_669
"""Of the model's 151,936 logits; the tokenizer's tokens."""
KV_CACHE_BYTES = 4 << 30
"""Room for all requests, so that each reads keys and values of its own."""
GOAL = 0.10


def start(shape: str, num_steps: int) -> Rank:
    """One rank with all its cores, and a KV cache that holds the requests to their ends."""
    config = EngineConfig(
        model_dir=checkpoint(shape),
        device="cpu",
        skip_tokenizer_init=True,
        max_model_len=CONTEXT_LEN + num_steps + 1,
        max_num_seqs=NUM_REQUESTS,
        kv_cache_memory=KV_CACHE_BYTES,
    )
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = Rendezvous(rank=0, size=1, directory=Path(directory))
        return start_rank(config, rendezvous, lambda _progress: None)


def give_blocks(rank: Rank, requests: Sequence[RequestState], num_tokens: int) -> None:
    """Blocks for `num_tokens` of each; what they hold is zeros."""
    num_blocks = -(-num_tokens // rank.kv_layout.block_size)
    if num_blocks * len(requests) > rank.num_blocks:
        raise SystemExit(f"{rank.num_blocks} KV blocks are too few: fewer steps, please")
    for index, request in enumerate(requests):
        request.block_ids[:] = range(index * num_blocks, (index + 1) * num_blocks)


def step_of(requests: Sequence[RequestState]) -> Step:
    """Every request decodes one token."""
    return Step(tuple(ScheduledRequest(request, 1) for request in requests))


def main() -> None:
    """Run the steps and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--num-steps", type=int, default=15)
    args = parser.parse_args()
    num_steps = NUM_WARM_UPS + args.num_steps
    rank = start(args.shape, num_steps)
    sampler = Sampler(
        num_valid_token_ids=min(NUM_KNOWN_IDS, rank.model_config.vocab_size),
        device=rank.device,
        eos_token_ids=rank.model_config.eos_token_ids,
    )
    requests = mixed_requests()
    give_blocks(rank, requests, CONTEXT_LEN + num_steps)
    step = step_of(requests)
    forward_s, sampling_s, logits = [], [], None
    for _ in range(num_steps):
        began = time.perf_counter()
        logits = rank.runner.execute(build(step, rank.kv_layout.block_size))
        middle = time.perf_counter()
        if logits is None:
            raise SystemExit("a step without logits")
        results = sampler.sample(logits, step)
        forward_s.append(middle - began)
        sampling_s.append(time.perf_counter() - middle)
        for request, result in zip(requests, results, strict=True):
            request.token_ids += result.token_ids
            request.num_computed_tokens += 1
    forward_s, sampling_s = forward_s[NUM_WARM_UPS:], sampling_s[NUM_WARM_UPS:]
    step_ms, sampling_ms = (1000 * statistics.median(times) for times in (forward_s, sampling_s))
    share = sampling_ms / step_ms
    print(f"{torch.get_num_threads()} threads, {args.shape}, {NUM_REQUESTS} rows at {CONTEXT_LEN}+")
    print(f"median step without sampling {step_ms:8.1f} ms")
    print(f"median sampling of the mix   {sampling_ms:8.1f} ms = {share:.1%} (goal: {GOAL:.0%})")
    for index, fields in enumerate(MIX):
        kind = step_of(requests[index :: len(MIX)])
        times = []
        for _ in range(args.num_steps):
            began = time.perf_counter()
            sampler.sample(logits[index :: len(MIX)], kind)
            times.append(time.perf_counter() - began)
        print(
            f"  {1000 * statistics.median(times):6.2f} ms  {', '.join(fields) or 'temperature 1'}"
        )


if __name__ == "__main__":
    main()
