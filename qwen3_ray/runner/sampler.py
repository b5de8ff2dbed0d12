"""The next token of every sampling row, as a function of its logits, parameters, seed, position."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner import philox, reference_sampling
from qwen3_ray.runner.sampling_rows import Rows, make_rows

METHOD = "inverse-cdf-fp64/philox4x32-10"
"""Names the way of sampling in the numerics fingerprint."""


class Sampler:
    """Samples ids below `num_valid_token_ids`; no row's result depends on another row."""

    def __init__(self, *, num_valid_token_ids: int) -> None:
        self._num_valid_token_ids = num_valid_token_ids

    def sample(self, logits: torch.Tensor, requests: Sequence[RequestState]) -> list[int]:
        """One id for each request; `sampling_rows.NUMERICAL_ERROR` where a logit is not finite.

        Args:
            logits: [at least num_requests, at least num_valid_token_ids], float32, on any device.
            requests: in the order of the rows; further rows are padding.
        """
        rows = make_rows(requests)
        logits = logits[: len(requests)]
        if logits.device.type == "cpu":
            return self._sample_on_cpu(logits, rows)
        return self._sample_by_sorting(logits, rows)

    def _sample_on_cpu(self, logits: torch.Tensor, rows: Rows) -> list[int]:
        # Numba belongs to the CPU alone: a GPU machine may lack it.
        kernel = import_module("qwen3_ray.runner.numba_sampling")
        ids = kernel.sample_rows(
            logits.float().contiguous().numpy(), self._num_valid_token_ids, rows
        )
        return [int(token_id) for token_id in ids]

    def _sample_by_sorting(self, logits: torch.Tensor, rows: Rows) -> list[int]:
        shares = [philox.uniform(int(row["seed"]), int(row["position"])) for row in rows]
        columns = [
            torch.from_numpy(rows[name].copy()) for name in ("temperature", "top_k", "top_p")
        ]
        ids = reference_sampling.sample_rows(
            logits[:, : self._num_valid_token_ids].float(),
            *(column.to(logits.device) for column in columns),
            share=torch.tensor(shares, dtype=torch.float64, device=logits.device),
        )
        return [int(token_id) for token_id in ids.tolist()]
