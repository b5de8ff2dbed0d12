"""The Serve application: the one place where deployments are described and bound together.

    import_path: cluster.app:build_app     # args: the fields of DeployConfig

This module has no `from __future__ import annotations`: Serve looks at the class in
`build_app`'s annotation to check and convert the arguments of a deploy file.
"""

import secrets

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster.config import DeployConfig
from cluster.ingress.server import RouterDeployment
from cluster.ops.local_ray import nodes
from cluster.ops.resources import FRONT_CPUS, choose_device, replica_bundles
from cluster.replica.front import Front
from cluster.router.membership import REQUEST_ROUTER_CLASS
from cluster.scaling.autoscaling import autoscaling_config

_NO_LIMIT = 1_000_000
"""For Serve's own queues: admission is the fronts' business, in tokens."""
_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
_DRAIN_LOOP_S = 0.25
_DRAIN_TIMEOUT_S = 20.0
_LOGGING = LoggingConfig(enable_access_log=False)


def build_app(config: DeployConfig) -> Application:
    """Router and replicas of one model, ready for `serve.run` or a deploy file.

    Each build draws the secret that routers show to replicas on their links.
    """
    device = choose_device(config, nodes() if ray.is_initialized() else [])
    config = config.model_copy(update={"device": device})
    link_token = secrets.token_hex(32)
    replica = _replica_deployment(config, replica_bundles(config.tp_size, device))
    return _router_deployment(config).bind(config, link_token, replica.bind(config, link_token))


def _replica_deployment(config: DeployConfig, bundles: list[dict[str, float]]) -> Deployment:
    """The engines: as many as asked for, each with its own group of bundles on one machine."""
    low, high = config.replica_range
    router_config = {"request_router_class": REQUEST_ROUTER_CLASS}
    deployment: Deployment = serve.deployment(
        name="Replica",
        ray_actor_options={"num_cpus": FRONT_CPUS},
        placement_group_bundles=bundles,
        placement_group_strategy="STRICT_PACK",
        request_router_config=RequestRouterConfig.model_validate(router_config),
        max_ongoing_requests=_NO_LIMIT,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=_DRAIN_LOOP_S,
        graceful_shutdown_timeout_s=_DRAIN_TIMEOUT_S,
        logging_config=_LOGGING,
    )(Front)
    if low < high:
        return deployment.options(autoscaling_config=autoscaling_config(config))
    return deployment.options(num_replicas=low)


def _router_deployment(config: DeployConfig) -> Deployment:
    """The ingress: HTTP through Serve's proxy, gRPC on its own port."""
    deployment: Deployment = serve.deployment(
        name="Router",
        num_replicas=config.num_routers,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_NO_LIMIT,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=_DRAIN_LOOP_S,
        graceful_shutdown_timeout_s=_DRAIN_TIMEOUT_S,
        logging_config=_LOGGING,
    )(RouterDeployment)
    return deployment
