"""What transformers takes for the same model on the same device. None of it is ours to fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from benchmarks.gpu import reference
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import synchronize
from benchmarks.gpu.ours import random_sequences
from benchmarks.gpu.record import Record
from benchmarks.gpu.setup import Setup

Prompts = list[list[int]]

_SECONDS_TO_LOAD, _SECONDS_TO_GENERATE = 15.0, 10.0
_SECONDS_TO_START, _SECONDS_TO_COMPILE = 40.0, 60.0


def measure_transformers(setup: Setup, record: Record, deadline: Deadline) -> None:
    """The stage: plain `generate`, continuous batching, then a static cache, compiled."""
    if not deadline.has(_SECONDS_TO_LOAD):
        record.skip("transformers", "no time left")
        return
    path = setup.checkpoints.of(setup.sizes.large)
    model = reference.from_tensors(path, setup.device)
    baselines = _Baselines(setup, record, deadline)
    plain, continuous = _Plain(model), _Continuous(model)
    batches = setup.sizes.baseline_batches
    for batch in batches:
        baselines.measure("generate", batch, plain, _SECONDS_TO_GENERATE)
    baselines.measure("continuous", batches[-1], continuous, _SECONDS_TO_START)
    if setup.is_gpu:
        for batch in batches:
            compiled = _Plain(model, cache_implementation="static")
            baselines.measure("compiled, static cache", batch, compiled, _SECONDS_TO_COMPILE)


class _Plain:
    def __init__(self, model: Qwen3ForCausalLM, **options: object) -> None:
        self._model, self._options = model, options

    def __call__(self, prompts: Prompts, num_tokens: int) -> None:
        inputs = torch.tensor(prompts, device=self._model.device)
        self._model.generate(
            inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False,
            attention_mask=torch.ones_like(inputs), pad_token_id=0, **self._options,
        )  # fmt: skip


class _Continuous:
    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self._model = model

    def __call__(self, prompts: Prompts, num_tokens: int) -> None:
        config = GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        outputs = self._model.generate_batch(prompts, generation_config=config)
        # What fails in its thread is logged there, and no more.
        if [len(output.generated_tokens) for output in outputs.values()] != [num_tokens] * len(
            prompts
        ):
            raise ValueError("outputs are missing or of other lengths")


@dataclass(frozen=True, slots=True)
class _Baselines:
    setup: Setup
    record: Record
    deadline: Deadline

    def measure(
        self, way: str, batch: int, generate: Callable[[Prompts, int], None], need_s: float
    ) -> None:
        """A row, or why there is none."""
        name = f"transformers, {way}, {batch} sequences"
        if not self.deadline.has(need_s):
            self.record.skip(name, "no time left")
            return
        config = self.setup.config(self.setup.sizes.large)
        prompt_len, output_len = self.setup.sizes.baseline_lens
        # What a call does but once, as recording a graph, is in both and cancels out.
        num_few = max(1, output_len // 4)
        prompts = random_sequences([prompt_len] * batch, config.vocab_size)
        try:
            # A longer static cache than the last one is compiled for anew.
            generate(prompts, output_len)
            first_s, few_s, all_s = (
                self._seconds(generate, prompts, n) for n in (1, num_few, output_len)
            )
        except Exception as error:
            self.record.skip(name, f"{type(error).__name__}: {error}"[:300])
            return
        decode_s = (all_s - few_s) / (output_len - num_few)
        if decode_s <= 0:
            self.record.skip(name, f"{output_len} tokens took no longer than {num_few}")
            return
        self.record.row(
            "transformers, decoding greedily",
            way=way, sequences=batch, prompt=prompt_len, first_ms=1e3 * first_s,
            step_ms=1e3 * decode_s, decode_tokens_per_s=batch / decode_s,
        )  # fmt: skip

    def _seconds(
        self, generate: Callable[[Prompts, int], None], prompts: Prompts, num_tokens: int
    ) -> float:
        synchronize(self.setup.device)
        start = time.perf_counter()
        generate(prompts, num_tokens)
        synchronize(self.setup.device)
        return time.perf_counter() - start
