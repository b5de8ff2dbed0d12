from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.ops.local_ray import _environment


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
