"""How far each rank has come on its way up: written by the ranks, read by the command line.

Kept in the GCS's internal key-value store, the one place that every process of a Ray cluster
reaches without an actor in between. Its API is private to Ray: this file is the only user.
Everything is best effort: a rank must never fail to start because nobody could be told.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from ray.experimental import internal_kv

_NAMESPACE = b"qwen3-ray-progress"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """`stage` is one of "connect", "load" (done and total in bytes), "warm-up" and "ready"."""

    stage: str
    done: int = 0
    total: int = 0


def publish(replica_id: str, stage: str, done: int, total: int, *, rank: int = 0) -> None:
    """Say how far `rank` of a replica is; a later call replaces an earlier one."""
    key = f"{replica_id}/{rank}".encode()
    value = json.dumps([stage, done, total]).encode()
    try:
        internal_kv._internal_kv_put(key, value, overwrite=True, namespace=_NAMESPACE)
    except Exception:
        _logger.debug("progress of %s not published", key, exc_info=True)


def clear() -> None:
    """Forget what earlier replicas said; before a deployment on a cluster that had one."""
    try:
        for key in internal_kv._internal_kv_list(b"", namespace=_NAMESPACE):
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
    except Exception:
        _logger.debug("progress not cleared", exc_info=True)


def read_all() -> dict[str, Progress]:
    """Last word of every rank that has spoken, by "replica_id/rank"; empty without a cluster."""
    try:
        keys = internal_kv._internal_kv_list(b"", namespace=_NAMESPACE)
        return {key.decode(): progress for key in keys if (progress := _read(key)) is not None}
    except Exception:
        _logger.debug("progress not read", exc_info=True)
        return {}


def _read(key: bytes) -> Progress | None:
    value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    if value is None:
        return None
    stage, done, total = json.loads(value)
    return Progress(stage, done, total)
