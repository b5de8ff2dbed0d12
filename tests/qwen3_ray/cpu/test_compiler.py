from __future__ import annotations

import stat
from pathlib import Path

import pytest

from qwen3_ray.cpu.compiler import choose_cache_dir


def test_compiled_kernels_are_kept_in_the_user_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = choose_cache_dir()
    assert folder.is_relative_to(tmp_path / "qwen3-ray")
    assert folder == choose_cache_dir()


def test_without_a_writable_home_each_process_has_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = choose_cache_dir()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder != choose_cache_dir()
