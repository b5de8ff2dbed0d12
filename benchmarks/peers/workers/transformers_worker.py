"""Hugging Face transformers' `generate` on a static batch, weights as fp32."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.workers.protocol import Generate, of_steps, serve


class Stamps(StoppingCriteria):
    """Asked after each step whether to stop: notes the time and never wants to."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, *_: object, **_kwargs: object) -> torch.Tensor:
        """`input_ids` [batch, tokens so far] -> [batch], all False."""
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(model_dir: Path, _max_model_len: int) -> Generate:
    """See `protocol.Load`."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        inputs = torch.tensor(prompts)
        stamps = Stamps()
        outputs = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([stamps]),
        )
        if outputs.shape[1] != inputs.shape[1] + num_tokens:
            raise RuntimeError("an output has another length than it should")
        return of_steps(stamps.times, len(prompts), num_tokens)

    return generate


if __name__ == "__main__":
    serve(load, transformers.__version__)
