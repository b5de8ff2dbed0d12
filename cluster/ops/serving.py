"""`qwen3-ray serve` from its settings to its end."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from cluster.app import build_app
from cluster.config import DeployConfig
from cluster.ops import progress
from cluster.ops.deploy import deployed, wait_until_ready
from cluster.ops.display import Display, make_display, summarise
from cluster.ops.local_ray import existing_ray, nodes, own_ray
from cluster.ops.ports import check_ports
from cluster.ops.resources import choose_device, num_logical_cpus, require_resources
from cluster.ops.signals import StopSignal
from qwen3_ray.model.hub import resolve_model_dir
from qwen3_ray.model.model_config import ModelConfig


def serve_until_stopped(config: DeployConfig, *, ray_address: str | None) -> None:
    """Start, announce, wait for SIGINT or SIGTERM, drain and clean up.

    Args:
        config: what to serve.
        ray_address: of a Ray cluster that is there already; None starts one on this machine.

    Raises:
        ConfigError: found before anything starts, where this machine can see it.
        StartupError: a replica or router could not start.
    """
    if ray_address is None:
        config = _check_here(config)
    stop = StopSignal()
    stop.install()
    with make_display(sys.stderr) as display, _connected(config, ray_address, display):
        stop.install()  # Ray's core has put its own handlers in
        if stop.is_set:
            return
        device = choose_device(config, nodes())
        require_resources(config, device, nodes())
        progress.clear()
        with deployed(build_app(config), config, ray_stays=ray_address is not None):
            num_ranks = config.replica_range[0] * config.tp_size
            display.note(f"Starting {num_ranks} rank(s) on {device}")
            model = wait_until_ready(
                config,
                on_poll=lambda: display.show(summarise(progress.read_all(), num_ranks)),
                stopped=stop.wait,
            )
            if model is not None:
                display.close()
                sys.stdout.write(ready_line(config, model) + "\n")
                sys.stdout.flush()
                stop.wait()
            display.note("Stopping")


def _check_here(config: DeployConfig) -> DeployConfig:
    """What can be found wrong on this machine in a moment; relative directories made absolute."""
    model_dir = resolve_model_dir(config.model)
    model_config = ModelConfig.from_dir(model_dir)
    model_config.check_tensor_parallel(config.tp_size)
    model_config.resolve_max_model_len(config.max_model_len)
    config.engine_config(model_dir)
    check_ports(config.host, {"http_port": config.http_port, "grpc_port": config.grpc_port})
    if config.model is None or not Path(config.model).expanduser().is_dir():
        return config
    absolute = {"model": str(model_dir), "served_model_name": config.model_name}
    return config.model_copy(update=absolute)


def _connected(
    config: DeployConfig, ray_address: str | None, display: Display
) -> AbstractContextManager[None]:
    if ray_address is not None:
        return existing_ray(ray_address)
    num_cores = len(os.sched_getaffinity(0))
    num_ranks = config.replica_range[1] * config.tp_size
    if num_ranks > num_cores:
        display.note(f"warning: {num_ranks} ranks share {num_cores} cores and slow each other down")
    display.note("Starting Ray")
    return own_ray(max(num_logical_cpus(config), num_cores))


def ready_line(config: DeployConfig, model: str) -> str:
    """What a user and a script wait for: where to send requests, and who answers."""
    low, high = config.replica_range
    count = f"{low} to {high} replicas" if low < high else f"{low} replica{'s' * (low > 1)}"
    return (
        f"Ready: http://{config.host}:{config.http_port} (HTTP)  "
        f"{config.host}:{config.grpc_port} (gRPC)  model {model}, {count} x TP {config.tp_size}"
    )
