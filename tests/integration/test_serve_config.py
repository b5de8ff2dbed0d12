"""The manifest's serveConfigV2 reaches RUNNING the way KubeRay deploys it, and then answers.

The tests run in order: the first one looks at a head on which nothing is deployed yet.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
import yaml
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from qwen3_ray.config import DEMO_MODEL_DIR
from tests.integration.clients import Call, grpc_pieces, http_pieces, text_of
from tests.integration.ray_head import RayHead, running_head
from tests.integration.server import eventually, free_ports
from tests.k8s.manifests import K8S, REPOSITORY, build
from tests.k8s.operator_rules import groups, ray_container
from tests.k8s.ray_view import resources

RUNNING_LIMIT_S = 150.0
DARCY = Call("Mr. Darcy looked at her and", max_tokens=16)
GREEDY = ' said, "I am sure you will be very much'

Json = dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """The manifest, and the head on which its configuration is applied."""

    head: RayHead
    service: Json
    http_port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def serve_config(self) -> Json:
        """The manifest's own, but for the model, the counts, the device and the ports."""
        config: Json = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        config["http_options"]["port"] = self.http_port
        config["applications"][0]["args"] |= {
            "model": str(DEMO_MODEL_DIR),
            "device": "cpu",
            "max_replicas": 2,
            "num_routers": 1,
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            # As much as a small machine has to spare beside other tests.
            "max_model_len": 4_096,
            "kv_cache_memory": 64 << 20,
        }
        return config

    def probe(self, name: str) -> bool:
        """Run a probe of the router pod in this machine's shell."""
        router = dict(groups(self.service))["router"]
        command = [*ray_container(router)[name]["exec"]["command"]]
        ours = {"8000": self.http_port, "9000": self.grpc_port, "52365": self.head.agent_port}
        for port, here in ours.items():
            command[-1] = command[-1].replace(port, str(here))
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    (service,) = (r for r in build(K8S / "base") if r["kind"] == "RayService")
    router_pod = resources(dict(groups(service))["router"])
    with running_head({"router": router_pod["router"]}) as head:
        yield Deployment(head, service, *free_ports(2))


def test_before_the_deployment_no_probe_passes(deployment: Deployment) -> None:
    assert not deployment.probe("startupProbe")
    assert not deployment.probe("readinessProbe")


def test_it_reaches_running(deployment: Deployment) -> None:
    deployment.head.deploy(deployment.serve_config())

    def running() -> bool:
        state = deployment.head.application("qwen3-ray")
        problems = [d["message"] for d in state.get("deployments", {}).values()]
        assert state.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"), problems
        return state.get("status") == "RUNNING"

    eventually(running, limit_s=RUNNING_LIMIT_S, what="the application is RUNNING")
    state = deployment.head.application("qwen3-ray")
    assert state["deployments"]["Router"]["deployment_config"]["ray_actor_options"][
        "resources"
    ] == {"router": 1}


def test_the_probes_of_a_router_pod_pass(deployment: Deployment) -> None:
    eventually(lambda: deployment.probe("startupProbe"), limit_s=30, what="the startup probe")
    assert deployment.probe("readinessProbe")


async def test_it_answers_over_http_and_grpc(deployment: Deployment) -> None:
    over_http = await text_of(http_pieces(deployment.url, DARCY))
    assert over_http.startswith(GREEDY)
    assert await text_of(grpc_pieces(deployment.target, DARCY)) == over_http


def test_it_tells_the_name_that_the_manifest_gives_it(deployment: Deployment) -> None:
    (model,) = httpx.get(f"{deployment.url}/v1/models", timeout=30).json()["data"]
    assert model["id"] == "Qwen/Qwen3-4B-Base"
    with grpc.insecure_channel(deployment.target) as channel:
        health = HealthStub(channel).Check(HealthCheckRequest(), timeout=30)
    assert health.status == HealthCheckResponse.SERVING


def test_the_examples_print_one_text(deployment: Deployment) -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-m", f"examples.{name}", DARCY.prompt, address],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=REPOSITORY,
        ).stdout
        for name, address in (
            ("grpc_stream", deployment.target),
            ("http_stream", deployment.url.removeprefix("http://")),
        )
    }
    assert len(printed) == 1
    assert printed.pop().startswith(GREEDY)


def test_the_dashboard_wants_the_token(deployment: Deployment) -> None:
    url = str(deployment.head.call("GET", "/api/serve/applications/").request.url)
    assert httpx.get(url, timeout=30).status_code == 401
