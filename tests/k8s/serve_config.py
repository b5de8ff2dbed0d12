"""A strict reading of `serveConfigV2`: Serve's own schema accepts nearly every typing error."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from cluster.config import DeployConfig, parse_deploy_config
from qwen3_ray.errors import ConfigError
from tests.k8s import ray_view
from tests.k8s.operator_rules import groups, ports

Json = dict[str, Any]

PROXY_DRAIN_S = 30


def problems(service: Json) -> list[str]:
    """Why Serve would not run this configuration as it reads; stops at the first broken layer."""
    try:
        config = yaml.load(service["spec"]["serveConfigV2"], _UniqueKeyLoader)
        ServeDeploySchema.model_validate(config)
    except (yaml.YAMLError, ValidationError) as error:
        return [f"serveConfigV2: {error}"]
    found = list(unknown_keys(ServeDeploySchema, config, "serveConfigV2"))
    if len(config["applications"]) != 1:
        found.append("serveConfigV2: the ports below belong to one application")
    if found:
        return found
    (application,) = config["applications"]
    try:
        builder = _resolve(application["import_path"])
        settings = parse_deploy_config(application["args"])
    except (ImportError, AttributeError, TypeError, ConfigError) as error:
        return [f"serveConfigV2.applications.0: {error}"]
    return [
        *_port_problems(service, config, settings),
        *_scale_problems(service, settings),
        *_placement_problems(service, application, builder(settings)),
    ]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} given twice")
        return super().construct_mapping(node, deep)


def unknown_keys(model: type[BaseModel], value: Json, path: str) -> Iterator[str]:
    """Keys that `model`, or a model inside it, does not know and would silently drop."""
    known = dict(model.model_fields)
    known |= {field.alias: field for field in model.model_fields.values() if field.alias}
    for key, child in value.items():
        if key not in known:
            yield f"{path}.{key}: unknown key"
            continue
        inner = next(_models(known[key].annotation), None)
        items = child if isinstance(child, list) else [child]
        for index, item in enumerate(items):
            if inner is not None and isinstance(item, dict):
                where = f"{path}.{key}" + (f".{index}" if isinstance(child, list) else "")
                yield from unknown_keys(inner, item, where)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _resolve(import_path: str) -> ray_view.Builder:
    """The app builder; Serve parses `args` by its signature, so it must take a DeployConfig."""
    module, _, name = import_path.partition(":")
    builder: ray_view.Builder = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(builder)
    hints.pop("return", None)
    if list(hints.values()) != [DeployConfig]:
        raise TypeError(f"{import_path} takes {hints}, not one DeployConfig")
    return builder


def _port_problems(service: Json, config: Json, settings: DeployConfig) -> Iterator[str]:
    http = config.get("http_options", {})
    if http.get("port", 8000) != settings.http_port:
        yield f"http_options.port {http.get('port')} is not http_port {settings.http_port}"
    for where, host in (("http_options", http.get("host", "0.0.0.0")), ("args", settings.host)):
        if host != "0.0.0.0":
            yield f"{where}.host is {host}: unreachable from outside the pod"
    for name, group in groups(service):
        found = ports(group)
        if found.get("serve") != settings.http_port:
            yield f"{name}: port `serve` is {found.get('serve')}, not {settings.http_port}"
        if found.get("serve-grpc", settings.grpc_port) != settings.grpc_port:
            yield f"{name}: port `serve-grpc` is not {settings.grpc_port}"


def _scale_problems(service: Json, settings: DeployConfig) -> Iterator[str]:
    gpu_groups = [g for _, g in groups(service) if ray_view.resources(g).get("GPU")]
    low, high = (sum(g[key] for g in gpu_groups) for key in ("minReplicas", "maxReplicas"))
    if (low, high) != settings.replica_range:
        yield f"{settings.replica_range} replicas do not fit {low} to {high} GPU pods"
    slots = [g for _, g in groups(service) if ray_view.resources(g).get(ray_view.ROUTER_RESOURCE)]
    low, high = (sum(g[key] for g in slots) for key in ("minReplicas", "maxReplicas"))
    if not low <= settings.num_routers <= high:
        yield f"{settings.num_routers} routers do not fit {low} to {high} router pods"


def _placement_problems(
    service: Json, application: Json, app: ray_view.Application
) -> Iterator[str]:
    deployments = ray_view.deployments(app)
    overrides = {item["name"]: item for item in application.get("deployments", ())}
    for name in overrides.keys() - deployments.keys():
        yield f"deployment {name!r} does not exist; there are {sorted(deployments)}"
    pods = {name: ray_view.resources(group) for name, group in groups(service)}
    for name, deployment in deployments.items():
        needed = ray_view.needed(deployment, overrides.get(name, {}))
        fitting = {pod for pod, has in pods.items() if ray_view.fits(needed, has)}
        if not fitting:
            yield f"{name} needs {needed} in one pod; pods have {pods}"
        listening = {pod for pod, group in groups(service) if "serve-grpc" in ports(group)}
        if name == "Router" and fitting != listening:
            yield f"routers may run on {sorted(fitting)}, gRPC is published on {sorted(listening)}"
        grace = deployment.graceful_shutdown_timeout_s + PROXY_DRAIN_S
        for pod, group in groups(service):
            if (
                pod in fitting
                and group["template"]["spec"]["terminationGracePeriodSeconds"] < grace
            ):
                yield f"{pod}: a termination grace below {grace} s cuts off {name}"
