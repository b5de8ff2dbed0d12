from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.waiting_queue import WaitingQueue
from qwen3_ray.sampling_params import SamplingParams


def make_state(request_id: str, num_tokens: int) -> RequestState:
    return RequestState(
        request_id=request_id, token_ids=[0] * num_tokens, prompt_len=1, params=SamplingParams()
    )


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push_front", "pop", "remove"]), st.integers(1, 9), st.integers()
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(operations=OPERATIONS)
def test_the_queue_behaves_like_a_list_and_counts_its_tokens(
    operations: list[tuple[str, int, int]],
) -> None:
    queue, oracle = WaitingQueue(), list[RequestState]()
    for number, (operation, num_tokens, pick) in enumerate(operations):
        request = make_state(str(number), num_tokens)
        if operation == "push":
            queue.push(request)
            oracle.append(request)
        elif operation == "push_front":
            queue.push_front(request)
            oracle.insert(0, request)
        elif operation == "pop" and oracle:
            assert queue.pop() is oracle.pop(0)
        elif operation == "remove" and oracle:
            victim = oracle.pop(pick % len(oracle))
            assert queue.remove(victim.request_id)
            assert victim.request_id not in queue
        assert list(queue) == oracle
        assert len(queue) == len(oracle)
        assert queue.peek() is (oracle[0] if oracle else None)
        assert queue.num_tokens == sum(request.num_tokens for request in oracle)


def test_removing_a_stranger_changes_nothing() -> None:
    queue = WaitingQueue()
    queue.push(make_state("a", 3))
    assert not queue.remove("b")
    assert (len(queue), queue.num_tokens) == (1, 3)
