from __future__ import annotations

import platform

import pytest

from qwen3_ray.cpu import features


def test_what_a_cpu_lacks_is_named() -> None:
    assert features.missing_from({"fma": True, "f16c": True, "avx2": False}) == ()
    assert features.missing_from({"fma": False, "f16c": True}) == ("fma",)
    assert features.missing_from({"sse2": True}) == ("fma", "f16c")


def test_other_architectures_lack_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(features.binding, "get_host_cpu_features", dict)
    assert features.missing_features() == ()
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert features.missing_features() == ("fma", "f16c")
