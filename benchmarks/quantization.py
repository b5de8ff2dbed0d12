"""What weights of eight bits cost in accuracy, and what they bring: against fp16 on the CPU.

    python -m benchmarks.quantization                    # the bundled model, with perplexity
    python -m benchmarks.quantization --model DIR

One process, one rank with all cores. Prints the relative error of the logits of `NUM_POSITIONS`
random tokens against fp32; of the bundled model its perplexity on a text that it has not seen; the
bytes of the linear weights; and the time of decode steps and of a prompt, both models in turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.packed import PackedMatrix
from qwen3_ray.layers.quantized import QuantizedMatrix
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import SequenceCache, forward_logits, forward_step
from qwen3_ray.testing_models import engine_config
from qwen3_ray.text.tokenizer import find_tokenizer

NUM_POSITIONS = 64
CONTEXT_LEN = 192
STEPS = {
    "decode, 1 stream": (1, CONTEXT_LEN, 1),
    "decode, 8 streams": (8, CONTEXT_LEN, 1),
    "decode, 16 streams": (16, CONTEXT_LEN, 1),
    "prefill of 512 tokens": (1, 512, 512),
}
"""Streams, tokens of each, how many of these the step computes."""
TEXT = """\
Miss Harriet Lowell had been three weeks at the parsonage before she could be persuaded that her \
cousin meant to stay the winter. He was a young man of good sense and easy temper, with nine \
hundred a year and no settled opinion upon any subject but shooting; and Mrs. Lowell, who had two \
other daughters to be thought of, could not but consider his visit as a very fortunate \
circumstance. "You will own, my dear," said she to her husband, "that he is exceedingly attentive. \
He has walked with the girls every morning this week." Mr. Lowell replied that he had observed it, \
and that the roads were uncommonly dry for the season.

And it came to pass in the third year, that there was no rain upon the land, and the people cried \
unto the king. And the king said unto them, Go ye up into the hill country, and ask of the old man \
that dwelleth there; for his fathers knew where the waters were hid. So they arose, and went, and \
found him sitting at the door of his house in the heat of the day. And he lifted up his eyes, and \
said, Wherefore are ye come? Is there not a well in your own city, that your fathers digged?
"""
"""In the manner of what the bundled model learnt from."""


def load(model_dir: Path, **settings: str) -> Qwen3ForCausalLM:
    """One rank on the CPU."""
    config = engine_config(model_dir, **settings)
    return load_model(config, ModelConfig.from_dir(model_dir), TPGroup.single())


def demo_tokens() -> list[int]:
    """`TEXT` for the bundled model."""
    tokenizer = find_tokenizer(DEMO_MODEL_DIR)
    return [] if tokenizer is None else tokenizer.encode(TEXT)


def perplexity(model: Qwen3ForCausalLM, ids: list[int]) -> float:
    """Of each token by those before it."""
    losses = forward_logits(model, ids)[:-1].log_softmax(-1)
    return math.exp(-losses.gather(1, torch.tensor(ids[1:])[:, None]).mean())


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected, the mean over the rows."""
    return float(((logits - expected).norm(dim=1) / expected.norm(dim=1)).mean())


def weight_bytes(model: Qwen3ForCausalLM) -> int:
    """Of the linear weights as the kernels hold them."""
    total = 0
    for matrix in model.matrices():
        if isinstance(matrix, QuantizedMatrix):
            total += matrix.scales.nbytes
        if isinstance(matrix, PackedMatrix | QuantizedMatrix):
            total += matrix.panels.nbytes
    return total


def step_seconds(
    models: Sequence[Qwen3ForCausalLM], step: tuple[int, int, int], num_rounds: int
) -> list[float]:
    """Median seconds of one of `STEPS` for each model; they take turns."""
    num_seqs, length, num_tokens = step
    ids = [[(7 * seq + position) % 200 for position in range(length)] for seq in range(num_seqs)]
    chunks = [(seq, length - num_tokens, num_tokens) for seq in range(num_seqs)]
    cache = SequenceCache(models[0], [length] * num_seqs)
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(num_rounds + 1):  # the first warms up
        for model, times in zip(models, seconds, strict=True):
            began = time.perf_counter()
            forward_step(model, cache, ids, chunks)
            if turn > 0:
                times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]


def print_accuracy(model_dir: Path, models: dict[str, Qwen3ForCausalLM]) -> None:
    """Against a model of fp32, which is gone afterwards."""
    generator = torch.Generator().manual_seed(0)
    full = load(model_dir, dtype="float32")
    ids = torch.randint(full.config.vocab_size, (NUM_POSITIONS,), generator=generator).tolist()
    expected = forward_logits(full, ids)
    for name, model in models.items():
        logits = forward_logits(model, ids)
        same = float((logits.argmax(1) == expected.argmax(1)).float().mean())
        print(
            f"{name}: logits differ from fp32 by {relative_error(logits, expected):.2e}, "
            f"the likeliest token is the same at {100 * same:.0f} % of {NUM_POSITIONS} positions"
        )
    if model_dir == DEMO_MODEL_DIR:
        text = demo_tokens()
        for name, model in {"fp32": full, **models}.items():
            print(f"{name}: perplexity {perplexity(model, text):.3f} over {len(text)} tokens")


def main() -> None:
    """Print what is named above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL_DIR)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with torch.inference_mode():
        models = {"fp16": load(args.model), "int8": load(args.model, quantization="int8")}
        print_accuracy(args.model, models)
        for name, model in models.items():
            print(f"{name}: {weight_bytes(model) / 1e6:.1f} MB of linear weights")
        print(f"{torch.get_num_threads()} threads, median of {args.rounds}, ms a step")
        for name, step in STEPS.items():
            half, byte = step_seconds(list(models.values()), step, args.rounds)
            print(
                f"{name:24} fp16 {1000 * half:8.2f}   int8 {1000 * byte:8.2f}"
                f"   ratio {half / byte:.2f}"
            )


if __name__ == "__main__":
    main()
