"""Times to retry after follow from what the engine has been taking."""

import pytest

from cluster.replica.admission import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, PrefillRate


def test_without_experience_the_shortest_time_is_given() -> None:
    assert PrefillRate().seconds_for(10**9) == MIN_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("num_tokens", "seconds"),
    [(100, MIN_RETRY_AFTER_S), (4_000, 8.0), (10**9, MAX_RETRY_AFTER_S)],
)
def test_the_time_is_the_queues_within_bounds(num_tokens: int, seconds: float) -> None:
    rate = PrefillRate()
    for second in range(5):
        rate.observe(float(second), 500 * second)
    assert rate.seconds_for(num_tokens) == seconds


def test_an_idle_time_does_not_count_as_slowness() -> None:
    rate = PrefillRate()
    for second in range(5):
        rate.observe(float(second), 500 * second)
    for second in range(5, 100):
        rate.observe(float(second), 2_000)
    assert rate.seconds_for(4_000) == 8.0
