"""What the command says when a replica cannot start."""

from __future__ import annotations

import pytest

from cluster.ops.deploy import StartupError, startup_error

TRACEBACK = """\
Traceback (most recent call last):
  File "replica.py", line 1, in initialize
    await self._initialize()
ray.exceptions.RayTaskError(CheckpointError): ray::Rank.run()
qwen3_ray.errors.EngineError: rank 0 could not start
The above exception was the direct cause of the following exception:
  File "weights.py", line 7, in load_model
qwen3_ray.errors.CheckpointError: model = 'm/model.safetensors (tensor a)': is cut off
"""


def test_the_last_error_of_ours_becomes_one_line() -> None:
    error = startup_error(TRACEBACK)
    assert str(error) == "model = 'm/model.safetensors (tensor a)': is cut off"
    assert error.is_setting


@pytest.mark.parametrize("kind", ["EngineError", "NoSuchError"])
def test_a_failure_of_the_engine_is_not_the_users_setting(kind: str) -> None:
    error = startup_error(f"qwen3_ray.errors.{kind}: rank 1 is gone\n")
    assert (str(error), error.is_setting) == ("rank 1 is gone", False)


def test_a_bug_keeps_its_traceback() -> None:
    error = startup_error("Traceback ...\nKeyError: 'x'\n")
    assert isinstance(error, StartupError)
    assert str(error) == "a deployment failed to start: Traceback ...\nKeyError: 'x'"
    assert not error.is_setting
