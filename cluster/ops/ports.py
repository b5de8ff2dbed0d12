"""Are the ports free?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from qwen3_ray.errors import ConfigError, ResourcesError

_REASONS = {
    errno.EADDRINUSE: "is in use: stop what listens there, or choose another port",
    errno.EACCES: "needs privileges that this user lacks: choose a port above 1023",
}


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Bind each port once, as an ordinary server would, and let it go.

    Serve and gRPC bind with SO_REUSEPORT and would share a busy port without a word.

    Args:
        host: address or name to listen on.
        ports: setting ("http_port") -> number.

    Raises:
        ResourcesError: names the setting, the port and what to do.
        ConfigError: `host` is no address of this machine.
    """
    for setting, port in ports.items():
        _check_port(host, setting, port)


def _check_port(host: str, setting: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As every server does: a port whose last connections only linger counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None:
            raise ConfigError("host", host, f"cannot be listened on: {error}") from error
        raise ResourcesError(setting, port, reason) from error
