"""How many replicas the present work needs, and when to act on it. Pure: no clock, no Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BUSY_FRACTION = 0.8
"""A replica with this share of its sequences or KV blocks in use counts as full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSettings:
    """Bounds, targets and delays of the policy."""

    min_replicas: int
    max_replicas: int
    target_waiting_tokens: int
    """Waiting prompt tokens that one replica should have at most."""
    max_num_seqs: int
    """Sequences that one replica runs at once."""
    upscale_delay_s: float
    downscale_delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """Work of one replica, as it reported it."""

    waiting_tokens: float = 0.0
    """Prompt tokens accepted and not computed yet."""
    running: float = 0.0
    """Sequences in the batch."""
    kv_usage: float = 0.0
    """Share of the KV blocks in use, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A wish to change the number of replicas, not acted on yet."""

    since_s: float
    num_replicas: int
    """Scaling up: the last wish. Scaling down: the largest one since `since_s`."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`num_replicas` is the new target; `pending` goes into the next call."""

    num_replicas: int
    pending: Pending | None
    reason: str


def desired_replicas(loads: Sequence[ReplicaLoad], settings: ScalingSettings) -> tuple[int, str]:
    """Replicas that the work needs, within the bounds, and what says so.

    The most demanding of three views wins: prompt tokens in the queues, sequences that run,
    KV blocks in use. More work never asks for fewer replicas.
    """
    waiting = sum(load.waiting_tokens for load in loads)
    running = sum(load.running for load in loads)
    kv_usage = sum(load.kv_usage for load in loads)
    needs = {
        f"{waiting:.0f} waiting tokens at {settings.target_waiting_tokens} a replica": (
            waiting / settings.target_waiting_tokens
        ),
        f"{running:.0f} running sequences at {settings.max_num_seqs} a replica": (
            running / (settings.max_num_seqs * BUSY_FRACTION)
        ),
        f"KV blocks of {kv_usage:.2f} replicas": kv_usage / BUSY_FRACTION,
    }
    why, need = max(needs.items(), key=lambda item: item[1])
    wanted = math.ceil(need - 1e-9)  # 2.0000000001 from a sum of floats is 2
    bounded = min(max(wanted, settings.min_replicas), settings.max_replicas)
    return (
        bounded,
        f"{why} need {wanted}, bounds {settings.min_replicas} to {settings.max_replicas}",
    )


def decide(
    loads: Sequence[ReplicaLoad],
    *,
    target: int,
    pending: Pending | None,
    now_s: float,
    settings: ScalingSettings,
) -> Decision:
    """The next target.

    A wish is acted on once it has stood for its delay without a break. Scaling down goes only as
    far as the largest wish of that time, so that one quiet moment does not empty the cluster.

    Args:
        loads: one entry per running replica; a replica that has not reported yet is left out.
        target: the number of replicas aimed at now.
        pending: what the previous decision left behind.
        now_s: any clock that does not jump back.
    """
    wanted, why = desired_replicas(loads, settings)
    if wanted == target:
        return Decision(target, None, f"stay at {target}: {why}")
    up = wanted > target
    if pending is None or (pending.num_replicas > target) != up:
        pending = Pending(now_s, wanted)
    elif up:
        pending = Pending(pending.since_s, wanted)
    else:
        pending = Pending(pending.since_s, max(pending.num_replicas, wanted))
    delay_s = settings.upscale_delay_s if up else settings.downscale_delay_s
    age_s = now_s - pending.since_s
    if age_s >= delay_s:
        reached = pending.num_replicas
        return Decision(reached, None, f"{target} to {reached} replicas: {why}")
    return Decision(
        target,
        pending,
        f"stay at {target}, {wanted} wanted for {age_s:.1f} of {delay_s:g} s: {why}",
    )
