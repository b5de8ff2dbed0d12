"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.v1.generate_pb2_grpc import GenerateServiceStub
from tests.integration.server import (
    Server,
    command_environment,
    running_server,
    short_directory,
)

SCALING = (
    *("--min-replicas", "1", "--max-replicas", "2", "--target-waiting-tokens", "4000"),
    *("--upscale-delay-s", "0.5", "--downscale-delay-s", "3"),
)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands keep compiled kernels; empty at first, as on a fresh machine."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache_dir: Path) -> Iterator[dict[str, str]]:
    """Environment of a command, with a home and a temporary directory of the test's own."""
    with short_directory() as directory:
        yield command_environment(directory, cache_dir)


@pytest.fixture(scope="session")
def server(cache_dir: Path) -> Iterator[Server]:
    """A served demo model that scales from one replica to two; test_serve.py stops it."""
    with running_server(cache_dir, *SCALING) as server:
        yield server


@pytest.fixture(scope="session")
def stub(server: Server) -> Iterator[GenerateServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield GenerateServiceStub(channel)
