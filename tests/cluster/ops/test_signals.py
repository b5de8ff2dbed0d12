"""The first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cluster.ops.signals import StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]
    stop = StopSignal()
    stop.install()
    yield stop
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_sets_and_a_second_one_exits(stop: StopSignal, kind: signal.Signals) -> None:
    assert not stop.wait(0)
    os.kill(os.getpid(), kind)
    assert stop.wait(5)
    assert stop.is_set
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), kind)
