"""Who samples a step's rows: Numba on CPU, Triton on CUDA, and plain torch where neither is."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np
import torch

from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.layers.kernels import KernelChoice, obstacle_to_triton
from qwen3_ray.runner import reference_sampling
from qwen3_ray.runner.sampling_rows import Outcome, SamplingRows

_OPERATIONS_PER_LOGIT = 10


class SamplingWay(Protocol):
    """One way of sampling; a row's outcome depends on no other row."""

    method: str
    """Names the way in the numerics fingerprint."""

    def sample(
        self, logits: torch.Tensor, num_valid_token_ids: int, batch: SamplingRows
    ) -> Outcome:
        """See `reference_sampling.sample`; of the first of the logits' rows and columns."""


class NumbaSampling:
    """The Numba kernel, on as many threads as torch has in the thread that builds this."""

    method = (
        "philox4x32-10, inverse CDF in id order, fp64 sums of blocks of 256, fp32 weights to "
        "choose a block where nothing is cut"
    )

    def __init__(self) -> None:
        # Loaded here: a GPU machine may have no Numba.
        self._kernel = import_module("qwen3_ray.runner.numba_sampling").sample_rows
        self._pool = ThreadPool(torch.get_num_threads())

    def sample(
        self, logits: torch.Tensor, num_valid_token_ids: int, batch: SamplingRows
    ) -> Outcome:
        """See `SamplingWay`."""
        rows = batch.rows
        outcome = Outcome.empty(len(rows), min(batch.max_num_top, num_valid_token_ids))
        # The dearest rows first, in turns, so that threads end together.
        cost = (rows["temperature"] > 0) * 1 + (rows["top_p"] < 1) * 2 + (rows["num_top"] >= 0) * 1
        self._pool.run(
            self._kernel,
            _OPERATIONS_PER_LOGIT * len(rows) * num_valid_token_ids,
            logits.contiguous().numpy(),
            num_valid_token_ids,
            np.argsort(-cost, kind="stable"),
            batch,
            outcome,
        )
        return outcome


class ReferenceSampling:
    """Plain torch, by sorting."""

    method = "philox4x32-10, inverse CDF in id order, fp64 running sum"

    def sample(
        self, logits: torch.Tensor, num_valid_token_ids: int, batch: SamplingRows
    ) -> Outcome:
        """See `SamplingWay`."""
        known = logits[: len(batch.rows), :num_valid_token_ids]
        return reference_sampling.sample(known, batch)


def select_sampling(choice: KernelChoice, device: torch.device) -> SamplingWay:
    """`auto` is numba on CPU and triton on CUDA, or reference there if Triton is missing.

    Triton works on the CPU, too, if it is told to interpret.
    """
    if choice == "auto" and device.type == "cpu":
        choice = "numba"
    elif choice == "auto":
        choice = "reference" if obstacle_to_triton() else "triton"
    if choice == "numba":
        return NumbaSampling()
    if choice == "triton":
        way: SamplingWay = import_module("qwen3_ray.runner.triton_sampling").TritonSampling()
        return way
    return ReferenceSampling()
