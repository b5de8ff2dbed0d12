"""What sampling needs to know of each row, as one flat array that a kernel can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.core.request_state import RequestState

NUMERICAL_ERROR = -1
"""Stands for the id of a row whose logits are not all finite."""

ROW = np.dtype(
    [
        ("temperature", np.float64),  # 0 takes the largest logit
        ("top_p", np.float64),
        ("top_k", np.int64),  # 0 or less keeps all
        ("seed", np.int64),
        ("position", np.int64),  # absolute, of the token to be sampled
    ]
)
Rows: TypeAlias = NDArray[np.void]


def make_rows(requests: Sequence[RequestState]) -> Rows:
    """One `ROW` for each request that samples its next token; their seeds must be drawn."""
    return np.array(
        [
            (p.temperature, p.top_p, p.top_k, p.seed, request.num_tokens)
            for request in requests
            for p in (request.params,)
        ],
        dtype=ROW,
    )
