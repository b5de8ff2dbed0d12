"""The commands that need no cluster."""

from __future__ import annotations

import qwen3_ray
from tests.integration.server import run_command


def test_generate_streams_text_and_refuses_bad_requests(environment: dict[str, str]) -> None:
    prompt = ("generate", "--prompt", "Mr. Darcy looked at her and", "--max-tokens", "8")
    result = run_command(environment, *prompt)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(' said, "I am sure')
    assert result.stderr == ""
    refused = run_command(environment, *prompt, "--temperature", "9")
    assert refused.returncode == 1
    assert refused.stderr == "error: temperature: must be a finite number from 0 to 2, got 9.0\n"


def test_version_is_the_packages_own(environment: dict[str, str]) -> None:
    result = run_command(environment, "version")
    assert (result.returncode, result.stdout) == (0, f"{qwen3_ray.__version__}\n")
