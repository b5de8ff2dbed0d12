"""Our model's logits, computed in whatever steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.gpu.setup import Setup
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.testing_forward import forward_step

Chunk = tuple[int, int, int]
"""Sequence, first position, number of tokens."""


class Steps:
    """Sequences, and a KV cache with room for all of each."""

    def __init__(
        self,
        setup: Setup,
        model: Qwen3ForCausalLM,
        sequences: Sequence[Sequence[int]],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._sequences = sequences
        self._cache = setup.cache(model, [len(ids) for ids in sequences], dtype)

    def compute(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """One step: logits of each chunk's rows."""
        logits = forward_step(self._model, self._cache, self._sequences, chunks)
        if logits is None:
            raise LookupError("only the first rank of a group has logits")
        return list(logits.split([length for _, _, length in chunks]))

    def prompts_then_decodes(self, num_decodes: int) -> list[torch.Tensor]:
        """All but the last tokens of each in one step, then those one by one, side by side.

        At every position of each sequence, [num_tokens, vocab_size].
        """
        numbers = range(len(self._sequences))
        prompts = [len(ids) - num_decodes for ids in self._sequences]
        parts = [[logits] for logits in self.compute([(i, 0, prompts[i]) for i in numbers])]
        for done in range(num_decodes):
            step = self.compute([(i, prompts[i] + done, 1) for i in numbers])
            for part, logits in zip(parts, step, strict=True):
                part.append(logits)
        return [torch.cat(part) for part in parts]

    def by_chunks(self, sequence: int, sizes: Sequence[int]) -> torch.Tensor:
        """All of one sequence, by chunks; the last size repeats."""
        num_tokens, done = len(self._sequences[sequence]), 0
        parts: list[torch.Tensor] = []
        while done < num_tokens:
            size = min(sizes[min(len(parts), len(sizes) - 1)], num_tokens - done)
            parts += self.compute([(sequence, done, size)])
            done += size
        return torch.cat(parts)


def random_sequences(
    lens: Sequence[int], vocab_size: int, seed: int = 0, *, num_given: int = 0
) -> list[list[int]]:
    """Of any ids, `num_given` tokens longer than `lens`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(vocab_size, (length + num_given,), generator=generator).tolist()
        for length in lens
    ]
