"""What KubeRay 1.7 checks or does beyond its CRD, as far as it concerns our manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_SERVICE_NAME = 47
RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
DEAD_FIELDS = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
ALPHA_FIELDS = ("tlsOptions", "networkPolicy", "historyServerOptions")
MIN_TOKEN_AUTH_RAY = (2, 52, 0)


def groups(service: Json) -> Iterator[tuple[str, Json]]:
    """(name, group) of the head and of each worker group."""
    cluster = service["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group


def templates(service: Json) -> Iterator[Json]:
    """The pod templates, with the metadata that an empty one lacks."""
    for _, group in groups(service):
        yield {"metadata": {}} | group["template"]


def ray_container(group: Json) -> Json:
    """The operator takes the first container for Ray's."""
    container: Json = group["template"]["spec"]["containers"][0]
    return container


def ports(group: Json) -> dict[str, int]:
    """Named ports of a group's Ray container."""
    return {port["name"]: port["containerPort"] for port in ray_container(group).get("ports", ())}


def problems(service: Json) -> list[str]:
    """Why the operator would refuse this RayService, or run it otherwise than it reads."""
    return [*_service_rules(service), *_cluster_rules(service), *_group_rules(service)]


def _service_rules(service: Json) -> Iterator[str]:
    spec, name = service["spec"], service["metadata"]["name"]
    if len(name) > MAX_SERVICE_NAME or not DNS_1035.fullmatch(name):
        yield f"name {name!r} is not a DNS-1035 label of at most {MAX_SERVICE_NAME} characters"
    yield from (f"{field} has no effect any more" for field in DEAD_FIELDS if field in spec)
    if spec.get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade":
        yield "an incremental upgrade serves HTTP alone: gRPC would not follow it"
    head = spec["rayClusterConfig"]["headGroupSpec"]
    if "serve" not in ports(head):
        yield "the head names no port `serve`: the operator would make no Serve Service"
    if "name" in head.get("headService", {}).get("metadata", {}):
        yield "headService.metadata.name must be unset"


def _cluster_rules(service: Json) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    yield from (
        f"{field} needs an alpha feature gate" for field in ALPHA_FIELDS if field in cluster
    )
    auth = cluster.get("authOptions", {})
    if auth.get("mode") != "token":
        yield "authOptions.mode is not `token`: the cluster is open"
    if auth.get("enableK8sTokenAuth"):
        yield "Kubernetes token authentication is refused for a RayService"
    version = tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))
    if version < MIN_TOKEN_AUTH_RAY:
        yield f"rayVersion {cluster.get('rayVersion')} has no token authentication"
    if cluster.get("autoscalerOptions", {}).get("version") == "v2":
        for name, group in groups(service):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{name}: autoscaler v2 needs restartPolicy Never"
            if "RAY_enable_autoscaler_v2" in _env(group):
                yield f"{name}: the autoscaler's version is set twice"


def _group_rules(service: Json) -> Iterator[str]:
    for name, group in groups(service):
        params = group.get("rayStartParams", {})
        both = sorted(RESOURCE_PARAMS & params.keys()) if group.get("resources") else []
        if both:
            yield f"{name}: {', '.join(both)} in rayStartParams beside `resources`"
        if "labels" in params:
            yield f"{name}: labels belong to the group, not to rayStartParams"
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        if not low <= group.get("replicas", low) <= high:
            yield f"{name}: minReplicas <= replicas <= maxReplicas does not hold"
        if not ray_container(group)["name"].startswith("ray-"):
            yield f"{name}: the first container is not Ray's"


def _env(group: Json) -> set[str]:
    return {item["name"] for item in ray_container(group).get("env", ())}


def grpc_service_problems(service: Json, resources: list[Json]) -> Iterator[str]:
    """Port 9000 must be reachable, and only where a router listens."""
    if "serve-grpc" in ports(service["spec"]["rayClusterConfig"]["headGroupSpec"]):
        yield "the head names `serve-grpc`: the operator would publish it on pods without a router"
    listening = {name for name, group in groups(service) if "serve-grpc" in ports(group)}
    services = [r for r in resources if r["kind"] == "Service"]
    if not services:
        yield "no Service publishes gRPC"
    for grpc in services:
        selector = grpc["spec"]["selector"].items()
        selected = {
            name
            for name, group in groups(service)
            if selector <= group["template"]["metadata"].get("labels", {}).items()
        }
        if selected != listening:
            yield f"gRPC selects {sorted(selected)}, routers listen on {sorted(listening)}"
        targets = {port["targetPort"] for port in grpc["spec"]["ports"]}
        if targets != {"serve-grpc"}:
            yield f"the gRPC Service targets {sorted(targets)}"
