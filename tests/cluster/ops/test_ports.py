"""A port in use, a port out of reach, a host that is not ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cluster.ops.ports import check_ports
from qwen3_ray.errors import ConfigError, ResourcesError


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_free_ports_pass_and_stay_free(free_port: int) -> None:
    check_ports("127.0.0.1", {"http_port": free_port})
    check_ports("localhost", {"http_port": free_port})
    check_ports("0.0.0.0", {"http_port": free_port})


def test_a_port_in_use_is_named_even_if_its_owner_would_share_it(busy_port: int) -> None:
    with pytest.raises(ResourcesError, match=rf"^grpc_port = {busy_port}: is in use: stop what"):
        check_ports("127.0.0.1", {"grpc_port": busy_port})


@pytest.mark.parametrize("host", ["203.0.113.7", "no such name"])
def test_a_host_that_is_not_here_is_the_hosts_fault(host: str, free_port: int) -> None:
    with pytest.raises(ConfigError, match=r"^host = "):
        check_ports(host, {"http_port": free_port})
