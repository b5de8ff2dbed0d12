"""The cluster to serve on: our own Ray on this machine, or one that is there already."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import services, utils

from cluster.ops.resources import NodeResources
from qwen3_ray.errors import ResourcesError

_OBJECT_STORE_BYTES = 100 << 20
"""Ray's store carries arguments and results of calls; tokens and weights never pass it."""

_SYSTEM_CONFIG = {
    "prestart_worker_first_driver": False,
    "worker_niceness": 0,
    "raylet_report_resources_period_milliseconds": 1_000,
    "memory_monitor_refresh_ms": 1_000,
    "local_fs_monitor_interval_ms": 10_000,
    "object_manager_timer_freq_ms": 1_000,
    "kill_idle_workers_interval_ms": 5_000,
    "gcs_pull_resource_loads_period_milliseconds": 5_000,
    "report_worker_backlog_interval_ms": 5_000,
    "task_events_report_interval_ms": 10_000,
    "event_stats": False,
}
"""For one machine that computes on the cores which Ray runs on.

Ray looks after itself ten times a second and gives its workers the lowest priority but four. Each
look takes a core from a step's kernels, and the other cores then wait for that one. With these
settings and those below, an idle cluster takes a quarter less (docs/performance.md).
"""
_DEFAULTS = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5", "REPORTER_UPDATE_INTERVAL_MS": "60000"}
"""Of the same kind, where Ray takes them from the environment."""

_TOKEN_HINT = "if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
_REMOVE_LIMIT_S = 5.0
_CONNECT_LIMIT_S = 5.0


@contextmanager
def own_ray(num_cpus: int) -> Iterator[None]:
    """A Ray of our own on this machine; gone with its files when the block ends.

    Call it on the main thread, which must outlive the block: Ray's processes end with it.

    Raises:
        ResourcesError: Ray did not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="qwen3-ray-"))
    try:
        with _environment(directory):
            with _as_guest():
                _start(num_cpus, directory)
            yield
    finally:
        try:
            ray.shutdown()
        finally:
            _remove(directory)


def _start(num_cpus: int, directory: Path) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(directory),
            _system_config=_SYSTEM_CONFIG,
        )
    except Exception as error:  # Ray raises just that when its processes take over 30 s
        reason = (
            f"Ray did not start on this machine: {str(error).rstrip('. ')}. If the machine is "
            "busy, try again later; or start Ray yourself (ray start --head) and give its address "
            "with --ray-address"
        )
        raise ResourcesError("ray_address", "local", reason) from error


@contextmanager
def _environment(directory: Path) -> Iterator[None]:
    """What Ray's processes inherit: their temporary files and their secret live in `directory`.

    Token authentication is on for a new local cluster. Without a token, Ray makes one that stays
    in the user's home directory; this one is of this run only.
    """
    before = dict(os.environ)
    os.environ["TMPDIR"] = str(directory)
    os.environ.update({name: os.environ.get(name, value) for name, value in _DEFAULTS.items()})
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & before.keys():
        token_file = directory / "auth_token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _as_guest() -> Iterator[None]:
    """While the block starts Ray, signals stay ours.

    Ray's processes get process groups of their own: a shell, `timeout` or a CI runner signals
    ours, and a Ray that dies of SIGTERM cannot drain. And Ray puts no SIGTERM handler in.
    Patches names that are private to Ray 2.60; it offers no settings for this.
    """
    original_popen, original_handler = services.ConsolePopen, utils.set_sigterm_handler

    class OwnGroupPopen(original_popen):  # type: ignore[misc, valid-type]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, process_group=0, **kwargs)

    services.ConsolePopen = OwnGroupPopen  # type: ignore[misc]
    utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        services.ConsolePopen = original_popen  # type: ignore[misc]
        utils.set_sigterm_handler = original_handler


def _remove(directory: Path) -> None:
    """Remove a directory into which the last dying processes may still write."""
    deadline = time.monotonic() + _REMOVE_LIMIT_S
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.05)


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """Connection to a Ray cluster that is there already and stays.

    Raises:
        ResourcesError: nobody answers at `address`.
    """
    try:
        _probe(address)
    except OSError as error:
        raise ResourcesError("ray_address", address, f"nobody listens there: {error}") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = f"no Ray cluster lets us in; {_TOKEN_HINT}: {error}".splitlines()[0]
        raise ResourcesError("ray_address", address, reason) from error
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes.

    Raises:
        OSError: no connection to "host:port". Other forms of addresses are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_LIMIT_S).close()


def nodes() -> list[NodeResources]:
    """Machines of the connected cluster that are alive."""
    return [
        NodeResources(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
