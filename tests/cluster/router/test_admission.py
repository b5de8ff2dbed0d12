"""What a client is told when nobody takes its request."""

from cluster.router.admission import MAX_LOST, may_try_again, verdict
from qwen3_ray.errors import OverloadedError, UnavailableError


def test_overload_never_ends_the_tries_and_lost_replicas_do() -> None:
    assert may_try_again([])
    assert may_try_again([OverloadedError("full")] * 50)
    assert may_try_again([UnavailableError("gone")] * (MAX_LOST - 1))
    assert not may_try_again([UnavailableError("gone")] * MAX_LOST)


def test_overload_wins_with_the_shortest_wait() -> None:
    error = verdict(
        [
            OverloadedError("full", retry_after_s=4.0),
            UnavailableError("gone"),
            OverloadedError("full", retry_after_s=2.5),
        ]
    )
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 2.5


def test_the_last_loss_is_told_when_no_replica_was_full() -> None:
    last = UnavailableError("second")
    assert verdict([UnavailableError("first"), last]) is last


def test_nobody_to_ask_is_unavailable() -> None:
    assert isinstance(verdict([]), UnavailableError)
