"""A Ray head on this machine as KubeRay starts one, and the calls that its operator makes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.integration.server import eventually, free_ports, short_directory

HEAD_LIMIT_S = 150.0


class RayHead:
    """`ray start --head --block` with ports, files and a token of its own."""

    def __init__(self, directory: Path, resources: dict[str, float]) -> None:
        gcs, self._dashboard, self.agent_port, client, metrics = free_ports(5)
        self._token = secrets.token_hex(32)
        command = [
            *(Path(sys.executable).with_name("ray"), "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--temp-dir={directory / 't'}"),
            *(f"--port={gcs}", f"--dashboard-port={self._dashboard}"),
            *(f"--dashboard-agent-listen-port={self.agent_port}",),
            *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
            *("--disable-usage-stats", f"--object-store-memory={100 << 20}"),
            *("--num-cpus=4", "--num-gpus=0", f"--resources={json.dumps(resources)}"),
        ]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment = {
            **inherited,
            "HOME": str(directory / "home"),
            "TMPDIR": str(directory / "t"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
        }
        with (directory / "ray.log").open("w") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        """A call to the dashboard with the cluster's token, as the operator's are."""
        headers = {"Authorization": f"Bearer {self._token}"}
        url = f"http://127.0.0.1:{self._dashboard}{path}"
        return httpx.request(method, url, headers=headers, json=body, timeout=30)

    def is_up(self) -> bool:
        """What the head's readiness probe asks."""
        assert self._process.poll() is None, "ray start ended"
        agent = f"http://127.0.0.1:{self.agent_port}/api/local_raylet_healthz"
        try:
            return (
                self.call("GET", "/api/gcs_healthz").status_code == 200
                and httpx.get(agent, timeout=10).status_code == 200
                and self.call("GET", "/api/serve/applications/").status_code == 200
            )
        except httpx.TransportError:
            return False

    def deploy(self, serve_config: dict[str, Any]) -> None:
        """Apply `serveConfigV2`."""
        answer = self.call("PUT", "/api/serve/applications/", serve_config)
        assert answer.status_code == 200, answer.text

    def application(self, name: str) -> dict[str, Any]:
        """State of one application; empty until Serve knows it."""
        applications = self.call("GET", "/api/serve/applications/").json()["applications"]
        state: dict[str, Any] = applications.get(name, {})
        return state

    def kill(self) -> None:
        """End every process of this head."""
        root = psutil.Process(self._process.pid)
        tree = [root, *root.children(recursive=True)]
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(30)
        psutil.wait_procs(tree, timeout=30)


@contextmanager
def running_head(resources: dict[str, float]) -> Iterator[RayHead]:
    """A head that answers the operator; killed at the end."""
    with short_directory() as directory:
        head = RayHead(directory, resources)
        try:
            eventually(head.is_up, limit_s=HEAD_LIMIT_S, what="the head is up")
            yield head
        finally:
            head.kill()
