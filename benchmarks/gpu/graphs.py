"""Steps at fixed places of the device's memory, as the engine's graphs run them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.setup import Setup
from qwen3_ray.attention.base import KVCache
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.device_stream import use_own_stream


class DecodeStep:
    """A token for each of some sequences of one length, from embedding to sampled id.

    Keys and values are whatever the memory holds: zeros.
    """

    def __init__(
        self, setup: Setup, model: Qwen3ForCausalLM, num_seqs: int, context_len: int
    ) -> None:
        self._setup, self._model = setup, model
        device = setup.device
        cache = setup.cache(model, [context_len] * num_seqs)
        self._caches: list[KVCache] = cache.caches
        self._metadata = cache.metadata([(i, context_len - 1, 1) for i in range(num_seqs)])
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (num_seqs,), generator=generator)
        self._ids = ids.int().to(device)
        self._positions = torch.full((num_seqs,), context_len - 1, dtype=torch.int32, device=device)
        self._rows = _greedy_rows(num_seqs, device)
        self.logits = torch.empty(num_seqs, model.config.vocab_size, device=device)
        """[num_seqs, vocab_size], of the last run."""
        self.sampled = torch.empty(num_seqs, dtype=torch.int32, device=device)
        """[num_seqs], of the last run."""

    def run(self, *, keep_logits: bool = True) -> None:
        """Kernel by kernel."""
        hidden = self._model.forward(self._ids, self._positions, self._caches, self._metadata)
        logits = self._model.compute_logits(hidden)
        if logits is None:
            return
        if keep_logits:
            self.logits.copy_(logits)
        _choose(self._setup, logits, self._rows, self.sampled)

    def captured(self, *, keep_logits: bool = True) -> Callable[[], object]:
        """What runs it by one call; without graphs it is `run`."""
        return capture(self._setup, lambda: self.run(keep_logits=keep_logits))


class PrefillStep:
    """One prompt, from embedding to the likeliest next token."""

    def __init__(self, setup: Setup, model: Qwen3ForCausalLM, num_tokens: int) -> None:
        self._setup, self._model = setup, model
        device = setup.device
        cache = setup.cache(model, [num_tokens])
        self._caches = cache.caches
        self._metadata = cache.metadata([(0, 0, num_tokens)])
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (num_tokens,), generator=generator)
        self._ids = ids.int().to(device)
        self._positions = torch.arange(num_tokens, dtype=torch.int32, device=device)
        self._rows = _greedy_rows(1, device)
        self._sampled = torch.empty(1, dtype=torch.int32, device=device)

    def run(self) -> None:
        """Kernel by kernel."""
        hidden = self._model.forward(self._ids, self._positions, self._caches, self._metadata)
        logits = self._model.compute_logits(hidden[-1:])
        if logits is not None:
            _choose(self._setup, logits, self._rows, self._sampled)

    def captured(self) -> Callable[[], object]:
        """What runs it by one call; without graphs it is `run`."""
        return capture(self._setup, self.run)


def capture(setup: Setup, work: Callable[[], object]) -> Callable[[], object]:
    """By a graph of the engine's own making, on a stream of its own."""
    if not setup.is_gpu:
        return work
    current = torch.cuda.current_stream()
    stream = use_own_stream(setup.device)
    try:
        torch.cuda.current_stream().wait_stream(current)
        return stream.capture(work)
    finally:
        torch.cuda.set_stream(current)


def _greedy_rows(num_rows: int, device: torch.device) -> DeviceRows:
    zeros = {
        name: torch.zeros(num_rows, dtype=dtype, device=device)
        for name, dtype in (
            ("temperature", torch.float32), ("max_gap", torch.float32), ("top_k", torch.int32),
            ("seed", torch.int64), ("position", torch.int32), ("choice", torch.int32),
        )
    }  # fmt: skip
    return DeviceRows(top_p=torch.ones(num_rows, device=device), **zeros)


def _choose(setup: Setup, logits: torch.Tensor, rows: DeviceRows, out: torch.Tensor) -> None:
    if setup.kernels != "triton":
        out.copy_(logits.argmax(-1))
        return
    from qwen3_ray.runner.triton_choice import choose  # noqa: PLC0415 - Triton may be absent

    choose(logits, rows, logits.shape[-1], out, may_cut=False)
