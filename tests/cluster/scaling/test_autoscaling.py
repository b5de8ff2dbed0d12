"""The policy behind Serve's own interface: what it reads, what it answers, how it is set up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingContext

from cluster.config import DeployConfig
from cluster.scaling.autoscaling import WorkPolicy, autoscaling_config


def _context(
    metrics: dict[str, dict[str, float]] | None, *, target: int = 1, running: int = 1
) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=SimpleNamespace(name="Replica", app_name="app"),
        deployment_name="Replica",
        app_name="app",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[f"r{i}" for i in range(running)],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=metrics,
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=3,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )


def _policy(upscale_delay_s: float = 0.0) -> WorkPolicy:
    return WorkPolicy(
        target_waiting_tokens=100,
        max_num_seqs=10,
        upscale_delay_s=upscale_delay_s,
        downscale_delay_s=0.0,
    )


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        pytest.param(None, 1, id="no report"),
        pytest.param({"waiting_tokens": {"r0": 150.0}}, 2, id="one replica waits"),
        pytest.param({"waiting_tokens": {"r0": 90.0, "r1": 120.0}}, 3, id="both wait"),
        pytest.param({"num_running": {"r0": 9.0}}, 2, id="full batch"),
        pytest.param({"kv_cache_usage": {"r0": 0.7, "r1": 0.95}}, 3, id="full cache"),
        pytest.param({"waiting_tokens": {"gone": 1e6}}, 1, id="a replica that left"),
    ],
)
def test_reports_of_running_replicas_decide(
    metrics: dict[str, dict[str, float]] | None, wanted: int
) -> None:
    assert _policy()(_context(metrics, running=2)) == (wanted, {})


def test_a_wish_waits_for_its_delay_between_calls() -> None:
    policy = _policy(upscale_delay_s=3600.0)
    busy = _context({"waiting_tokens": {"r0": 150.0}})
    assert policy(busy) == (1, {})
    assert policy(busy) == (1, {})


def test_serve_gets_the_policy_by_value_and_adds_no_delay_of_its_own() -> None:
    config = DeployConfig(
        min_replicas=1, max_replicas=3, target_waiting_tokens=7, upscale_delay_s=0.5
    )
    scaling = autoscaling_config(config)
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (1, 1, 3)
    assert scaling.upscale_delay_s == scaling.downscale_delay_s == 0.0
    policy_class = scaling.policy.get_policy()
    policy = policy_class(**scaling.policy.policy_kwargs)
    assert policy(_context({"waiting_tokens": {"r0": 0.0}})) == (1, {})
    assert scaling.policy.policy_kwargs["target_waiting_tokens"] == 7
