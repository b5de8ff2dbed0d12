from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.running_set import RunningSet
from qwen3_ray.sampling_params import SamplingParams

RANKS = st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 99)), unique=True, max_size=20)


@given(ranks=RANKS, picks=st.lists(st.integers(0, 19)))
def test_requests_stand_in_the_order_of_their_ranks(
    ranks: list[tuple[int, int]], picks: list[int]
) -> None:
    running, oracle = RunningSet(), list[RequestState]()
    for rank in ranks:
        request = RequestState(str(rank), [1], 1, SamplingParams(), rank=rank)
        running.add(request)
        oracle.append(request)
    oracle.sort(key=lambda request: request.rank)
    assert list(running) == oracle
    for pick in picks[: len(ranks)]:
        assert running.last is oracle[-1]
        victim = oracle.pop(pick % len(oracle))
        assert victim.request_id in running
        assert running.remove(victim.request_id) is victim
        assert victim.request_id not in running
        assert list(running) == oracle
        assert len(running) == len(oracle)
    assert running.remove("nobody") is None
