from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from cluster.ops import local_ray
from cluster.ops.local_ray import _environment
from qwen3_ray.errors import ResourcesError


def test_a_user_s_own_settings_stay_and_all_is_as_before_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.1")
    monkeypatch.delenv("REPORTER_UPDATE_INTERVAL_MS", raising=False)
    before = dict(os.environ)
    with _environment(tmp_path):
        assert os.environ["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] == "0.1"
        assert os.environ["REPORTER_UPDATE_INTERVAL_MS"] == "60000"
        assert os.environ["TMPDIR"] == str(tmp_path)
    assert dict(os.environ) == before


def test_a_ray_that_does_not_start_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(local_ray.ray, "init", init)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    told = r"timed out during startup.*--ray-address"
    with pytest.raises(ResourcesError, match=told), local_ray.own_ray(2):
        pytest.fail("it did not start")
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())
