"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.server import command_environment, short_directory


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands keep compiled kernels; empty at first, as on a fresh machine."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache_dir: Path) -> Iterator[dict[str, str]]:
    """Environment of a command, with a home and a temporary directory of the test's own."""
    with short_directory() as directory:
        yield command_environment(directory, cache_dir)
