"""The cluster to serve on: our own Ray on this machine, or one that is there already."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import services

from cluster.ops.resources import NodeResources
from qwen3_ray.errors import ResourcesError

_OBJECT_STORE_BYTES = 100 << 20
"""Ray's store carries arguments and results of calls; tokens and weights never pass it."""


@contextmanager
def own_ray(num_cpus: int) -> Iterator[None]:
    """A Ray of our own on this machine, on loopback; gone with its files when the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="qwen3-ray-"))
    try:
        _protect(directory)
        with _own_process_groups():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(directory),
                _system_config={"prestart_worker_first_driver": False},
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _protect(directory: Path) -> None:
    """Give Ray's token authentication (on for a new local cluster) a token of this run only.

    Without one, Ray makes a token that stays in the user's home directory.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    token_file = directory / "auth_token"
    token_file.touch(mode=0o600)
    token_file.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


@contextmanager
def _own_process_groups() -> Iterator[None]:
    """Keep Ray's processes out of our process group while the block starts them.

    A shell, `timeout` or a CI runner signals the whole group, and a Ray that dies of SIGTERM
    cannot drain. Patches a class that is private to Ray 2.60; Ray offers no setting.
    """
    original = services.ConsolePopen

    class OwnGroupPopen(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, process_group=0, **kwargs)

    services.ConsolePopen = OwnGroupPopen  # type: ignore[misc]
    try:
        yield
    finally:
        services.ConsolePopen = original  # type: ignore[misc]


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """Connection to a Ray cluster that is there already and stays.

    Raises:
        ResourcesError: nobody answers at `address`.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = f"no Ray cluster can be reached there: {error}".splitlines()[0]
        raise ResourcesError("ray_address", address, reason) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[NodeResources]:
    """Machines of the connected cluster that are alive."""
    return [
        NodeResources(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
