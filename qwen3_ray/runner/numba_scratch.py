"""Room that the sampling kernel works in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.cpu.numba_callee import callee
from qwen3_ray.runner.numba_logits import BLOCK_SIZE, num_blocks

Floats = NDArray[np.floating]

NUM_BINS = 512
"""A further one is for logits that are left out."""


class Scratch(NamedTuple):
    """For one row at a time, of one thread. `size` is the number of logits."""

    maxima: Floats
    """[num_blocks], float32: each block's largest logit."""
    scan_sums: Floats
    """[num_blocks], float64: each block's weights as `scan` sums them, where nothing is cut."""
    sums: Floats
    """[num_blocks], float64."""
    edited: Floats
    """[size], float32: logits that differ from the model's."""
    bins: NDArray[np.uint16]
    """[size]."""
    masses: Floats
    """[NUM_BINS + 1], float64: the weight in each bin."""
    ids: NDArray[np.int32]
    """[size]: candidates, in id order."""
    values: Floats
    """[size], float32: their logits."""
    weights: Floats
    """[size], float64: their weights."""


@callee
def make_scratch(size: int) -> Scratch:
    """Room for rows of `size` logits; what a row does not use is never touched."""
    return Scratch(
        np.empty(num_blocks(size), np.float32),
        np.empty(num_blocks(size), np.float64),
        np.empty(num_blocks(size), np.float64),
        np.empty(size, np.float32),
        np.empty(size, np.uint16),
        np.empty(NUM_BINS + 1, np.float64),
        np.empty(size, np.int32),
        np.empty(size, np.float32),
        np.empty(max(size, BLOCK_SIZE), np.float64),
    )
