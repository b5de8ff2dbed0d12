"""The next token of every sampling row, as a function of its logits, parameters, seed, position."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch

from qwen3_ray.attention.thread_pool import ThreadPool
from qwen3_ray.core.step import Sampled, Step
from qwen3_ray.runner import philox, reference_sampling
from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR, Rows, make_rows

METHOD = "philox4x32-10, inverse CDF in id order, fp64 sums"
"""Names the way of sampling in the numerics fingerprint."""
_OPERATIONS_PER_LOGIT = 10


class Sampler:
    """Samples ids below `num_valid_token_ids`; no row's result depends on another row.

    On CPU the Numba kernel does it, elsewhere torch by sorting.
    """

    def __init__(self, *, num_valid_token_ids: int, device: torch.device) -> None:
        self._num_valid_token_ids = num_valid_token_ids
        self._cpu: _CpuSampling | None = None
        if device.type == "cpu":
            self._cpu = _CpuSampling()

    def sample(self, logits: torch.Tensor, step: Step) -> list[Sampled]:
        """What each request of `step` gets, in its order.

        Args:
            logits: [at least the step's logit rows, at least num_valid_token_ids], float32;
                further rows are padding.
            step: its items' logit rows follow each other (`ScheduledRequest.num_logits`).
        """
        sampling = [item.request for item in step.scheduled if item.samples]
        rows = make_rows(sampling)
        if self._cpu is not None:
            ids = self._cpu.sample(logits, self._num_valid_token_ids, rows)
        else:
            ids = self._sample_by_sorting(logits[: len(sampling)], rows)
        remaining = iter(ids)
        return [_sampled(next(remaining)) if item.samples else Sampled() for item in step.scheduled]

    def _sample_by_sorting(self, logits: torch.Tensor, rows: Rows) -> list[int]:
        shares = [philox.uniform(int(row["seed"]), int(row["position"])) for row in rows]
        columns = [
            torch.from_numpy(rows[name].copy()) for name in ("temperature", "top_k", "top_p")
        ]
        sampled = reference_sampling.sample_rows(
            logits[:, : self._num_valid_token_ids],
            *(column.to(logits.device) for column in columns),
            share=torch.tensor(shares, dtype=torch.float64, device=logits.device),
        )
        ids: list[int] = sampled.tolist()
        return ids


def _sampled(token_id: int) -> Sampled:
    if token_id == NUMERICAL_ERROR:
        return Sampled(problem="numerical error: the model's logits are not all finite")
    return Sampled((token_id,))


class _CpuSampling:
    """The Numba kernel, on as many threads as torch has in the thread that builds this."""

    def __init__(self) -> None:
        # Loaded here: a GPU machine may have no Numba.
        self._kernel = import_module("qwen3_ray.runner.numba_sampling").sample_rows
        self._pool = ThreadPool(torch.get_num_threads())

    def sample(self, logits: torch.Tensor, num_valid_token_ids: int, rows: Rows) -> list[int]:
        """One id for each of `rows`."""
        ids = np.empty(rows.size, np.int64)
        array = logits.contiguous().numpy()
        num_operations = _OPERATIONS_PER_LOGIT * rows.size * num_valid_token_ids
        self._pool.run(self._kernel, num_operations, array, num_valid_token_ids, rows, ids)
        result: list[int] = ids.tolist()
        return result
