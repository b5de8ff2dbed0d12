"""The scaling policy as Ray Serve calls it.

Serve pickles this module by value and runs it in the controller, ten times a second. Serve's own
delays are set to zero: the delays of `policy` are the only ones.
"""

from __future__ import annotations

import logging
import time
import warnings

from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.config import DeployConfig
from cluster.scaling.policy import Pending, ReplicaLoad, ScalingSettings, decide

REPORT_PERIOD_S = 1.0
"""How often a replica reports its load to the controller."""

_logger = logging.getLogger("ray.serve")


class WorkPolicy:
    """Scales by work in tokens; one object lives in the controller for each deployment."""

    def __init__(
        self,
        *,
        target_waiting_tokens: int,
        max_num_seqs: int,
        upscale_delay_s: float,
        downscale_delay_s: float,
    ) -> None:
        self._target_waiting_tokens = target_waiting_tokens
        self._max_num_seqs = max_num_seqs
        self._upscale_delay_s = upscale_delay_s
        self._downscale_delay_s = downscale_delay_s
        self._pending: Pending | None = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, object]]:
        """Number of replicas to aim at; the state that Serve could keep for us stays empty."""
        settings = ScalingSettings(
            min_replicas=ctx.capacity_adjusted_min_replicas,
            max_replicas=ctx.capacity_adjusted_max_replicas,
            target_waiting_tokens=self._target_waiting_tokens,
            max_num_seqs=self._max_num_seqs,
            upscale_delay_s=self._upscale_delay_s,
            downscale_delay_s=self._downscale_delay_s,
        )
        decision = decide(
            _loads(ctx),
            target=ctx.target_num_replicas,
            pending=self._pending,
            now_s=time.monotonic(),
            settings=settings,
        )
        self._pending = decision.pending
        if decision.num_replicas != ctx.target_num_replicas:
            _logger.info("Scaling %s: %s", ctx.deployment_name, decision.reason)
        return decision.num_replicas, {}


def _loads(ctx: AutoscalingContext) -> list[ReplicaLoad]:
    """What `Front.record_autoscaling_stats` said on each replica, averaged over the look-back."""
    metrics = ctx.aggregated_metrics or {}
    by_replica = [
        {name: values[replica] for name, values in metrics.items() if replica in values}
        for replica in ctx.running_replicas
    ]
    return [
        ReplicaLoad(
            waiting_tokens=values.get("waiting_tokens", 0.0),
            running=values.get("num_running", 0.0),
            kv_usage=values.get("kv_cache_usage", 0.0),
        )
        for values in by_replica
        if values
    ]


def autoscaling_config(config: DeployConfig) -> AutoscalingConfig:
    """Serve's settings for the replicas of `config`, which must leave room to scale."""
    low, high = config.replica_range
    settings = {
        "min_replicas": low,
        "max_replicas": high,
        "initial_replicas": low,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "metrics_interval_s": REPORT_PERIOD_S,
        "look_back_period_s": 2 * REPORT_PERIOD_S,
        "policy": {
            "policy_function": f"{__name__}:{WorkPolicy.__name__}",
            "policy_kwargs": {
                "target_waiting_tokens": config.target_waiting_tokens,
                "max_num_seqs": config.max_num_seqs,
                "upscale_delay_s": config.upscale_delay_s,
                "downscale_delay_s": config.downscale_delay_s,
            },
        },
    }
    with warnings.catch_warnings():
        # Ray 2.60 announces environment variables in place of `metrics_interval_s` but reads
        # only the field.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig.model_validate(settings)
