"""What a row of logits is sampled with, as tensors on the device that holds the logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_ray.runner.sampling_rows import Records

MAX_ROWS_AT_ONCE = 256
"""A multiple of 16; a long prompt's logits are never edited or searched all at once."""
BYTES_PER_LOGIT = 8
"""That sampling takes of memory: of edited logits, and of ids of those that may be cut off."""
_SMALLEST_TEMPERATURE = 2.0**-66  # by which kernels can divide any distance of logits
_LARGEST_INT32 = 2**31 - 1
_ALIGNMENT = 16  # so that every column begins where kernels read it best


class DeviceRows(NamedTuple):
    """Each [num_rows]; `sampling_rows.ROW` tells what the fields mean."""

    temperature: torch.Tensor
    """float32."""
    max_gap: torch.Tensor
    """float32."""
    top_k: torch.Tensor
    """int32."""
    top_p: torch.Tensor
    """float32."""
    seed: torch.Tensor
    """int64."""
    position: torch.Tensor
    """int32."""
    choice: torch.Tensor
    """int32."""


def device_rows(rows: Records, device: torch.device) -> DeviceRows:
    """[num_rows] of `ROW`, narrowed, in one copy to the device."""
    columns = narrowed(rows)
    num_rows = len(rows)
    padded = -(-num_rows // _ALIGNMENT) * _ALIGNMENT
    sizes = [padded * column.itemsize for column in columns]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    packed = np.zeros(sum(sizes), np.uint8)
    for column, start in zip(columns, starts, strict=True):
        packed[start : start + column.nbytes] = column.view(np.uint8)
    there = torch.from_numpy(packed).to(device)
    return DeviceRows(
        *(
            there[start : start + column.nbytes].view(torch.from_numpy(column).dtype)
            for column, start in zip(columns, starts, strict=True)
        )
    )


def narrowed(rows: Records) -> tuple[NDArray[np.generic], ...]:
    """The columns of `DeviceRows`, on the host; whoever samples on a device takes these values.

    Temperatures above 0 stay so, and are at least 2^-66. `top_p` is never rounded up: where the
    tokens' mass meets it to the last bit, as it does among a few equals, no further one is kept.
    """
    temperature = rows["temperature"]
    smallest = np.where(temperature > 0, _SMALLEST_TEMPERATURE, 0.0)
    top_p = rows["top_p"].astype(np.float32)
    below = np.nextafter(top_p, np.float32(0))
    return (
        np.maximum(temperature, smallest).astype(np.float32),
        rows["max_gap"].astype(np.float32),
        np.clip(rows["top_k"], 0, _LARGEST_INT32).astype(np.int32),
        np.where(top_p > rows["top_p"], below, top_p),
        rows["seed"].astype(np.int64),
        rows["position"].astype(np.int32),
        rows["choice"].astype(np.int32),
    )
