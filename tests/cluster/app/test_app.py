"""The application that Serve gets: two deployments, bound, with one secret between them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from ray.serve import Application, Deployment
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from cluster.app import build_app
from cluster.config import DeployConfig


def _deployments(app: Application) -> tuple[Deployment, Deployment]:
    """Router and Replica of an application."""
    router = app._bound_deployment
    replica = router.init_args[2]
    assert isinstance(replica, Application)
    return router, replica._bound_deployment


def _build(**settings: object) -> tuple[Deployment, Deployment]:
    return _deployments(build_app(DeployConfig.model_validate(settings)))


def test_a_router_is_bound_to_replicas_that_share_its_secret() -> None:
    router, replica = _build(num_routers=2)
    assert (router.name, replica.name) == ("Router", "Replica")
    assert (router.num_replicas, replica.num_replicas) == (2, 1)
    assert router.ray_actor_options["num_cpus"] == 0
    assert router.init_args[:2] == replica.init_args
    assert len(replica.init_args[1]) == 64


def test_each_build_draws_its_own_secret() -> None:
    assert _build()[1].init_args[1] != _build()[1].init_args[1]


def test_a_replica_is_one_group_on_one_machine() -> None:
    _, replica = _build(tensor_parallel_size=4)
    config = replica._replica_config
    assert config.placement_group_strategy == "STRICT_PACK"
    assert config.placement_group_bundles == [{"CPU": 0.1}, *[{"CPU": 1.0}] * 4]
    assert replica.ray_actor_options["num_cpus"] == 0.1
    assert replica.init_args[0].device == "cpu"


def test_cuda_asks_for_a_gpu_for_each_rank() -> None:
    _, replica = _build(tensor_parallel_size=2, device="cuda")
    assert replica._replica_config.placement_group_bundles[1:] == [{"CPU": 1.0, "GPU": 1.0}] * 2


@pytest.mark.parametrize(
    ("settings", "num_replicas", "scaling"),
    [
        ({}, 1, None),
        ({"num_replicas": 3}, 3, None),
        ({"min_replicas": 2, "max_replicas": 2}, 2, None),
        ({"min_replicas": 2, "max_replicas": 5}, None, (2, 5)),
    ],
)
def test_only_a_range_of_replicas_scales(
    settings: dict[str, object], num_replicas: int | None, scaling: tuple[int, int] | None
) -> None:
    deployment_config = _build(**settings)[1]._deployment_config
    autoscaling = deployment_config.autoscaling_config
    if scaling is None:
        assert autoscaling is None
        assert deployment_config.num_replicas == num_replicas
    else:
        assert (autoscaling.min_replicas, autoscaling.max_replicas) == scaling
        assert autoscaling.policy.policy_function == "cluster.scaling.autoscaling:WorkPolicy"


def test_serve_checks_the_arguments_of_a_deploy_file() -> None:
    router, _ = _deployments(
        call_user_app_builder_with_args_if_necessary(build_app, {"served_model_name": "q"})
    )
    assert router.init_args[0].model_name == "q"
    with pytest.raises(ValidationError, match="tensor_parallel_sise"):
        call_user_app_builder_with_args_if_necessary(build_app, {"tensor_parallel_sise": 2})
