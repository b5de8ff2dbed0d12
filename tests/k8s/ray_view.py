"""What Ray makes of a worker group and of an application. Its private names stay in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec
from ray.serve import Application
from ray.serve._private.build_app import build_app

from cluster.config import DeployConfig

Json = dict[str, Any]
Builder = Callable[[DeployConfig], Application]

ROUTER_RESOURCE = "router"


def resources(group: Json) -> dict[str, float]:
    """Ray resources of one pod of `group`, as the autoscaler computes them."""
    is_head = "groupName" not in group
    return dict(_get_ray_resources_from_group_spec(group, is_head))


@dataclass(frozen=True)
class Placed:
    """What one replica of a deployment asks for."""

    actor_options: Mapping[str, Any]
    bundles: tuple[Mapping[str, float], ...]
    graceful_shutdown_timeout_s: float


def deployments(app: Application) -> dict[str, Placed]:
    """The deployments of an application by name."""
    built = build_app(app, name="check")
    return {
        deployment.name: Placed(
            actor_options=deployment.ray_actor_options or {},
            bundles=tuple(deployment._replica_config.placement_group_bundles or ()),
            graceful_shutdown_timeout_s=deployment._deployment_config.graceful_shutdown_timeout_s,
        )
        for deployment in built.deployments
    }


def needed(deployment: Placed, override: Json) -> dict[str, float]:
    """Resources that one replica takes from one pod: its bundles are packed strictly."""
    bundles = override.get("placement_group_bundles", deployment.bundles)
    if bundles:
        total: Counter[str] = Counter()
        for bundle in bundles:
            total.update(bundle)
        return dict(total)
    options = override.get("ray_actor_options", deployment.actor_options)
    asked = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    return {**asked, **options.get("resources", {})}


def fits(asked: Mapping[str, float], has: Mapping[str, float]) -> bool:
    """Whether a pod with the resources `has` can take a replica that asks for `asked`."""
    return all(has.get(name, 0) >= amount for name, amount in asked.items())
