"""What replicas need, where they fit, and the error when they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import DeployConfig
from cluster.ops.resources import (
    NodeResources,
    choose_device,
    num_logical_cpus,
    replica_bundles,
    require_resources,
)
from qwen3_ray.errors import ResourcesError


def _config(**settings: object) -> DeployConfig:
    return DeployConfig.model_validate(settings)


def test_a_replica_is_a_front_and_its_ranks() -> None:
    assert replica_bundles(2, "cpu") == [{"CPU": 0.1}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert replica_bundles(1, "cuda") == [{"CPU": 0.1}, {"CPU": 1.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("settings", "nodes", "device"),
    [
        ({"tensor_parallel_size": 2}, [NodeResources(8, 2)], "cuda"),
        ({"tensor_parallel_size": 2}, [NodeResources(8, 1)], "cpu"),
        ({"tensor_parallel_size": 2}, [NodeResources(8, 1)] * 2, "cpu"),
        ({"tensor_parallel_size": 2, "num_replicas": 2}, [NodeResources(8, 3)], "cpu"),
        ({"tensor_parallel_size": 2, "num_replicas": 2}, [NodeResources(8, 2)] * 2, "cuda"),
        ({"tensor_parallel_size": 1}, [], "cpu"),
        ({"tensor_parallel_size": 8, "device": "cuda"}, [], "cuda"),
        ({"device": "cpu"}, [NodeResources(8, 8)], "cpu"),
    ],
)
def test_auto_means_cuda_where_the_gpus_suffice(
    settings: dict[str, object], nodes: list[NodeResources], device: str
) -> None:
    assert choose_device(_config(**settings), nodes) == device


@pytest.mark.parametrize(
    ("settings", "cpus"),
    [
        ({}, 3),
        ({"tensor_parallel_size": 1}, 2),
        ({"num_replicas": 2}, 5),
        ({"min_replicas": 1, "max_replicas": 10, "tensor_parallel_size": 1}, 11),
    ],
)
def test_a_ray_of_our_own_has_room_for_the_most_replicas(
    settings: dict[str, object], cpus: int
) -> None:
    assert num_logical_cpus(_config(**settings)) == cpus


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_what_fits_is_accepted_and_what_does_not_is_named(
    tp_size: int, num_replicas: int, cpus: list[int]
) -> None:
    config = _config(tensor_parallel_size=tp_size, num_replicas=num_replicas)
    nodes = [NodeResources(count, 0) for count in cpus]
    places = 0
    for free in cpus:  # one replica after the other, as Ray places them
        places += len(range(0, int((free + 1e-9) / (tp_size + 0.1))))
    if places >= num_replicas:
        require_resources(config, "cpu", nodes)
    else:
        with pytest.raises(ResourcesError, match=f"tensor_parallel_size = {tp_size}: needs "):
            require_resources(config, "cpu", nodes)


def test_the_error_says_what_is_needed_and_what_is_there() -> None:
    config = _config(tensor_parallel_size=4, num_replicas=2, device="cuda")
    with pytest.raises(ResourcesError) as caught:
        require_resources(config, "cuda", [NodeResources(16, 4), NodeResources(16, 2)])
    assert str(caught.value) == (
        "tensor_parallel_size = 4: needs 8.2 CPUs and 8 GPUs for 2 replica(s), each with "
        "4.1 CPUs and 4 GPUs on one machine; present: 32 CPUs and 6 GPUs on 2 machine(s)"
    )
