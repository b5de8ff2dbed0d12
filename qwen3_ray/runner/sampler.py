"""The next token of every sampling row, as a function of its logits, parameters, seed, position."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import numpy as np
import torch

from qwen3_ray.attention.thread_pool import ThreadPool
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner import philox, reference_sampling
from qwen3_ray.runner.sampling_rows import Rows, make_rows

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

    def sample(self, logits: torch.Tensor, requests: Sequence[RequestState]) -> list[int]:
        """One id for each request; `sampling_rows.NUMERICAL_ERROR` where a logit is not finite.

        Args:
            logits: [at least num_requests, at least num_valid_token_ids], float32.
            requests: in the order of the rows; further rows are padding.
        """
        rows = make_rows(requests)
        if self._cpu is not None:
            return self._cpu.sample(logits, self._num_valid_token_ids, rows)
        return self._sample_by_sorting(logits[: len(requests)], rows)

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
