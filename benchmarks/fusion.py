"""What it brings to run all layers in one call, against their kernels called one by one.

    python -m benchmarks.fusion                    # the bundled model
    python -m benchmarks.fusion --model DIR

Both in turns in one process, on one rank with all cores: the forward pass and the head of decode
steps at a context of 192, and of one prompt of 128 tokens. Checks that both give the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import SequenceCache, forward_step
from qwen3_ray.testing_models import engine_config

CONTEXT_LEN = 192
PROMPT_LEN = 128
BATCHES = (1, 8, 16, 64)


def medians(
    models: Sequence[Qwen3ForCausalLM], num_seqs: int, num_tokens: int, num_rounds: int
) -> list[float]:
    """Seconds of a step of each model, over sequences whose last `num_tokens` it computes.

    Raises:
        SystemExit: the models' logits differ.
    """
    length = CONTEXT_LEN if num_tokens == 1 else num_tokens
    ids = [[(7 * seq + position) % 200 for position in range(length)] for seq in range(num_seqs)]
    chunks = [(seq, length - num_tokens, num_tokens) for seq in range(num_seqs)]
    cache = SequenceCache(models[0], [length] * num_seqs)
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(num_rounds + 1):  # the first warms up
        logits = []
        for model, times in zip(models, seconds, strict=True):
            began = time.perf_counter()
            logits.append(forward_step(model, cache, ids, chunks))
            if turn > 0:
                times.append(time.perf_counter() - began)
        first, second = logits
        if first is None or second is None or not torch.equal(first, second):
            raise SystemExit("the fused layers give other bits")
    return [statistics.median(times) for times in seconds]


def main() -> None:
    """Print a line for each kind of step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL_DIR)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    config = engine_config(args.model, skip_tokenizer_init=True)
    fused = load_model(config, ModelConfig.from_dir(args.model), TPGroup.single())
    models = (fused, fused.unfused())
    steps = [(f"decode, {batch} streams", batch, 1) for batch in BATCHES]
    steps.append((f"prefill of {PROMPT_LEN} tokens", 1, PROMPT_LEN))
    print(f"{torch.get_num_threads()} threads, median of {args.rounds}, ms a step")
    with torch.inference_mode():
        for name, num_seqs, num_tokens in steps:
            together, apart = medians(models, num_seqs, num_tokens, args.rounds)
            print(
                f"{name:24} one call {1000 * together:8.2f}   one by one {1000 * apart:8.2f}"
                f"   ratio {apart / together:.2f}"
            )


if __name__ == "__main__":
    main()
