"""What a step takes of memory beside weights and KV blocks, found by running one."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qwen3_ray.attention.base import allocate_kv_caches
from qwen3_ray.cpu import huge_pages
from qwen3_ray.distributed.control import StepArrays
from qwen3_ray.errors import ConfigError
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.runner.device_rows import BYTES_PER_LOGIT, MAX_ROWS_AT_ONCE
from qwen3_ray.runner.memory import KVLayout
from qwen3_ray.runner.model_runner import ModelRunner

logger = logging.getLogger(__name__)

_MAX_CPU_ROWS = 256
_MIN_LOGITS_BYTES = 16 << 20  # enough to stand out of what else a process allocates
_RESERVE = 1.2  # a process's memory is told in pages, and others of its threads take some
_PROC_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestStep:
    """The most that one step may be asked to compute."""

    num_tokens: int
    num_logits: int
    """Rows whose logits are wanted."""
    max_model_len: int


def measure_step_bytes(model: Qwen3ForCausalLM, layout: KVLayout, largest: LargestStep) -> int:
    """Bytes that the largest step takes on this rank beside its weights and KV blocks.

    Runs steps through one layer of each kind and the output head: activations do not outlive
    their layer. On CPU a step of a few hundred rows is measured and scaled up, so that the start
    of the engine stays quick; kernels there take the same memory whatever the context. On CUDA
    the largest step itself is run, each sequence `max_model_len` tokens long, and what sampling
    takes is added.

    Every rank must call it with the same arguments: the steps hold collectives.

    Raises:
        ConfigError: the largest step does not fit the GPU's memory.
    """
    probe = _Probe(model.shortened(), layout, largest)
    if model.device.type == "cuda":
        num_rows = min(largest.num_logits, MAX_ROWS_AT_ONCE)
        sampling = num_rows * model.config.vocab_size * BYTES_PER_LOGIT
        return _measure_on_gpu(probe, largest) + sampling
    num_rows = min(largest.num_tokens, _MAX_CPU_ROWS)
    num_logits = min(largest.num_logits, _num_telling_logits(model.config.vocab_size))
    probe.measure(1, 1)  # compiles the kernels, whose code is no activation
    of_rows = probe.measure(num_rows, 1)
    of_logits = max(0, probe.measure(num_rows, num_logits) - of_rows)
    return int(
        _RESERVE
        * (of_rows * largest.num_tokens / num_rows + of_logits * largest.num_logits / num_logits)
    )


def _measure_on_gpu(probe: _Probe, largest: LargestStep) -> int:
    try:
        return probe.measure(largest.num_tokens, largest.num_logits)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "max_num_batched_tokens",
            largest.num_tokens,
            f"a step of so many tokens, with {largest.num_logits} rows of logits and a context of "
            f"{largest.max_model_len}, does not fit the GPU beside the weights: lower "
            "--max-num-batched-tokens, --max-num-seqs or --max-model-len",
        ) from error


def _num_telling_logits(vocab_size: int) -> int:
    """Rows whose logits take enough memory to be measured, at a bounded cost."""
    return min(_MAX_CPU_ROWS, -(-_MIN_LOGITS_BYTES // (4 * vocab_size)))


class _Probe:
    """A runner over a cache of one block, which every position of every sequence is written to."""

    def __init__(self, model: Qwen3ForCausalLM, layout: KVLayout, largest: LargestStep) -> None:
        caches = allocate_kv_caches(
            num_layers=model.num_layers,
            num_blocks=1,
            block_size=layout.block_size,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            dtype=layout.dtype,
            device=model.device,
            panels=model.kv_panels,
        )
        self._runner = ModelRunner(model, caches, layout.block_size)
        self._block_size = layout.block_size
        self._max_model_len = largest.max_model_len
        self._device = model.device

    def measure(self, num_tokens: int, num_logits: int) -> int:
        """Bytes that a step takes at its peak."""
        arrays = self._arrays(num_tokens, num_logits)
        run = partial(self._runner.execute, arrays)
        if self._device.type == "cuda":
            return _peak_bytes_of_gpu(run, self._device)
        # Other threads of the process may allocate meanwhile: the smaller of two is nearer.
        return min(peak_bytes_of_process(run), peak_bytes_of_process(run))

    def _arrays(self, num_tokens: int, num_logits: int) -> StepArrays:
        """Sequences of at most `max_model_len` rows; on CUDA these are the end of a full one."""
        longest = self._max_model_len
        rows = np.full(-(-num_tokens // longest), longest, np.int32)
        rows[-1] = num_tokens - longest * (len(rows) - 1)
        seq_lens = np.full_like(rows, longest) if self._device.type == "cuda" else rows
        starts = np.concatenate(([0], np.cumsum(rows))).astype(np.int32)
        # The last row of a sequence has the position seq_len - 1.
        positions = np.arange(num_tokens) + np.repeat(seq_lens - starts[1:], rows)
        max_blocks = -(-int(seq_lens.max()) // self._block_size)
        return StepArrays(
            input_ids=np.zeros(num_tokens, np.int32),
            positions=positions.astype(np.int32),
            slot_mapping=(positions % self._block_size).astype(np.int32),
            query_start_loc=starts,
            seq_lens=seq_lens,
            block_tables=np.zeros((len(rows), max_blocks), np.int32),
            logits_indices=np.zeros(num_logits, np.int32),
        )


def _peak_bytes_of_gpu(run: Callable[[], object], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak


def peak_bytes_of_process(run: Callable[[], object], proc: Path = _PROC_SELF) -> int:
    """By how much the resident memory of this process grows at its peak while `run` runs.

    Memory that was freed but kept, by malloc or `huge_pages`, would be used again unseen, and is
    given back first. The process's high-water mark starts anew: `ru_maxrss` forgets what loading
    took.
    """
    _give_back_freed_memory()
    before = _status_bytes(proc, "VmRSS")
    try:
        (proc / "clear_refs").write_text("5")  # sets the high-water mark to what is resident
    except OSError as error:
        logger.warning("a step's peak memory cannot be measured here: %s", error)
        before = _status_bytes(proc, "VmHWM")
    run()
    return max(0, _status_bytes(proc, "VmHWM") - before)


def _give_back_freed_memory() -> None:
    huge_pages.give_back()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status_bytes(proc: Path, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", (proc / "status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
