from __future__ import annotations

import platform

import pytest
import torch

from qwen3_ray.cpu import features
from qwen3_ray.errors import ResourcesError
from qwen3_ray.layers.numba_kernels import NumbaKernels

CPU = torch.device("cpu")


def test_a_cpu_that_has_all_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    features.check_x86({"fma": True, "f16c": True, "avx2": False})
    assert not caplog.records


def test_a_cpu_without_fused_multiply_add_is_told_to_be_slow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    features.check_x86({"fma": False, "f16c": True})
    assert "no fused multiply-add" in caplog.text


def test_a_cpu_that_cannot_convert_halves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights' form is chosen, before anything is compiled; other architectures can."""
    monkeypatch.setattr(features.binding, "get_host_cpu_features", lambda: {"fma": True})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for halves in (True, False):
        with pytest.raises(ResourcesError, match="F16C"):
            NumbaKernels(1).packer(halves=halves, dtype=torch.float32, device=CPU)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    NumbaKernels(1).packer(halves=True, dtype=torch.float32, device=CPU)
