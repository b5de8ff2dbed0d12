"""A clock for the sections of a step, and which functions of the engine are its sections."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from qwen3_ray.core.scheduler import Scheduler
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.control import StepControl
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine import group_executor
from qwen3_ray.engine.engine import Engine
from qwen3_ray.layers.embedding import VocabParallelEmbedding
from qwen3_ray.layers.linear import ColumnParallelLinear, RowParallelLinear
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.runner.sampler import Sampler

Timed = Callable[..., object]

REST = "loop"
"""The loop itself: what comes in, what has ended, figures of the engine."""
FORWARD, HEAD = "forward", "head"
LINEAR = f"{FORWARD}: linear"
TO_FRONT = "to the front"
KERNEL = "sample: kernel"
PARTS = (
    "schedule", "build", "hand-over", FORWARD, HEAD, "sample: rows", KERNEL, "commit",
    "engine", TO_FRONT, REST,
)  # fmt: skip
"""In the order of a step. `sample: rows` is all but the kernel; `engine` is what lies between."""


class SectionClock:
    """Seconds that one thread spends in named sections, each without those within it."""

    def __init__(self) -> None:
        self._open = [REST]
        self._since = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def wrap(self, name: str | Timed, function: Timed) -> Timed:
        """`function` as a section; `name` may be made of the section around it and the arguments.

        A section within one of the same name is a part of that.
        """

        def timed(*args: object, **kwargs: object) -> object:
            self._pass()
            self._open.append(name if isinstance(name, str) else str(name(self._open[-1], *args)))
            try:
                return function(*args, **kwargs)
            finally:
                self._pass()
                self._open.pop()

        return timed

    def lap(self) -> dict[str, float]:
        """Seconds in each section since the last lap."""
        self._pass()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return dict(seconds)

    def _pass(self) -> None:
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def timed_sections(clock: SectionClock, *runners: type[ModelRunner]) -> Iterator[None]:
    """The engine's own functions tell `clock` when they begin and end, while the block runs.

    `runners` are classes that stand in for `ModelRunner`.
    """
    with ExitStack() as stack:
        for owner, attribute, name in (*_SECTIONS, *((r, "execute", FORWARD) for r in runners)):
            timed = clock.wrap(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        yield


def is_model(name: str) -> bool:
    """Whether a section belongs to the forward pass or the head."""
    return name == HEAD or name.startswith(FORWARD)


def place(name: str) -> tuple[int, str]:
    """Sorts sections in the order of a step; those within the forward pass follow it."""
    return PARTS.index(name if name in PARTS else FORWARD), name


def _of_linear(_around: str, linear: ColumnParallelLinear | RowParallelLinear, *_: object) -> str:
    return f"{LINEAR} {linear.matrix.in_features} x {linear.matrix.out_features}"


def _of_kernel(around: str, _pool: ThreadPool, kernel: Timed, *_: object) -> str:
    if around == HEAD or around.startswith(LINEAR):
        return around
    return KERNEL if kernel.__name__ == "sample_rows" else f"{FORWARD}: {kernel.__name__}"


_SECTIONS: tuple[tuple[object, str, str | Timed], ...] = (
    (Engine, "step", "engine"),
    (Scheduler, "schedule", "schedule"),
    (Scheduler, "commit", "commit"),
    (group_executor, "build", "build"),
    (StepControl, "send", "hand-over"),
    (ModelRunner, "execute", FORWARD),
    (Qwen3ForCausalLM, "compute_logits", HEAD),
    (Sampler, "sample", "sample: rows"),
    (ThreadPool, "run", _of_kernel),
    (ColumnParallelLinear, "forward", _of_linear),
    (RowParallelLinear, "forward", _of_linear),
    (VocabParallelEmbedding, "forward", f"{FORWARD}: embedding"),
    (TPGroup, "all_reduce", f"{FORWARD}: all_reduce"),
    (TPGroup, "gather", f"{FORWARD}: gather"),
)
"""Owner, attribute and section of everything that is timed."""
