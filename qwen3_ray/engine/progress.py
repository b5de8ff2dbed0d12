"""How far a rank is on its way to serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["connect", "load", "warm-up", "ready"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`done` of `total`: ranks that have come (connect), or bytes of weights (load)."""

    stage: Stage
    done: int = 0
    total: int = 0


OnProgress = Callable[[LoadProgress], None]
