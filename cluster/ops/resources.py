"""What the replicas of a configuration need, and whether the machines have it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.config import DeployConfig
from qwen3_ray.errors import ResourcesError

FRONT_CPUS = 0.1
"""Logical CPUs of a replica's front: small, it shares its core with others."""

ComputeDevice = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What one machine has in all, in Ray's logical units."""

    cpus: float
    gpus: float


def replica_bundles(tp_size: int, device: ComputeDevice) -> list[dict[str, float]]:
    """One replica's placement group: the front, then one bundle for each rank."""
    rank = {"CPU": 1.0, "GPU": 1.0} if device == "cuda" else {"CPU": 1.0}
    return [{"CPU": FRONT_CPUS}, *(dict(rank) for _ in range(tp_size))]


def choose_device(config: DeployConfig, nodes: Sequence[NodeResources]) -> ComputeDevice:
    """`auto` is CUDA where the GPUs suffice for the fewest replicas, else CPU."""
    if config.device != "auto":
        return config.device
    fits = _num_fitting(nodes, config.tp_size, "cuda") >= config.replica_range[0]
    return "cuda" if fits else "cpu"


def num_logical_cpus(config: DeployConfig) -> int:
    """Logical CPUs that the most replicas need on one machine, on either device."""
    return math.ceil(config.replica_range[1] * _total(config.tp_size, "cpu", "CPU"))


def require_resources(
    config: DeployConfig, device: ComputeDevice, nodes: Sequence[NodeResources]
) -> None:
    """Check that the fewest replicas can be placed, each on one machine.

    Raises:
        ResourcesError: says how many CPUs and GPUs are needed and how many there are.
    """
    num_replicas = config.replica_range[0]
    if _num_fitting(nodes, config.tp_size, device) >= num_replicas:
        return
    cpus, gpus = (_total(config.tp_size, device, kind) for kind in ("CPU", "GPU"))
    group = f"{num_replicas} replica(s), each with {_amount(cpus, gpus)} on one machine"
    needed = _amount(num_replicas * cpus, num_replicas * gpus)
    present = _amount(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
    raise ResourcesError(
        "tensor_parallel_size",
        config.tp_size,
        f"needs {needed} for {group}; present: {present} on {len(nodes)} machine(s)",
    )


def _total(tp_size: int, device: ComputeDevice, kind: str) -> float:
    return sum(bundle.get(kind, 0.0) for bundle in replica_bundles(tp_size, device))


def _num_fitting(nodes: Sequence[NodeResources], tp_size: int, device: ComputeDevice) -> int:
    cpus, gpus = (_total(tp_size, device, kind) for kind in ("CPU", "GPU"))
    places = [min(node.cpus / cpus, node.gpus / gpus if gpus else math.inf) for node in nodes]
    return sum(math.floor(count + 1e-9) for count in places)  # 1.9999999999 of a division is 2


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"
