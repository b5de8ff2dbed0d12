from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.waiting_queue import WaitingQueue
from qwen3_ray.sampling_params import SamplingParams


def make_state(number: int, num_tokens: int, priority: int = 0) -> RequestState:
    return RequestState(
        request_id=str(number),
        token_ids=[0] * num_tokens,
        prompt_len=1,
        params=SamplingParams(),
        rank=(priority, number),
    )


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["push", "push", "push back", "pop", "remove", "park", "park", "unpark", "peek"]
        ),
        st.integers(1, 9),
        st.integers(0, 3),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(operations=OPERATIONS)
def test_the_queue_behaves_like_a_list_sorted_by_rank(
    operations: list[tuple[str, int, int]],
) -> None:
    queue = WaitingQueue()
    ready, taken = list[RequestState](), list[RequestState]()
    parked: dict[bytes, list[RequestState]] = {}
    for number, (operation, num_tokens, pick) in enumerate(operations):
        waiting = [*ready, *(request for requests in parked.values() for request in requests)]
        event = bytes([pick % 2])
        if operation == "push":
            ready.append(make_state(number, num_tokens, pick))
            queue.push(ready[-1])
        elif operation == "push back" and taken:
            ready.append(taken.pop())
            queue.push(ready[-1])
        elif operation == "pop" and ready:
            taken.append(queue.pop())
            assert taken[-1] is ready.pop(0)
        elif operation == "remove" and waiting:
            victim = waiting[pick % len(waiting)]
            assert queue.remove(victim.request_id)
            assert victim.request_id not in queue
            for requests in (ready, *parked.values()):
                requests[:] = [request for request in requests if request is not victim]
        elif operation == "park" and ready:
            queue.park(event)
            parked.setdefault(event, []).append(ready.pop(0))
        elif operation == "unpark":
            queue.unpark(event)
            ready += parked.pop(event, [])
        elif operation == "peek" and parked.get(event):
            bring_back(parked[event], ready)
            assert queue.peek([event]) is ready[0]
        ready.sort(key=lambda request: request.rank)
        check(queue, ready, parked)
    queue.unpark_all()
    ready += [request for requests in parked.values() for request in requests]
    ready.sort(key=lambda request: request.rank)
    assert [queue.pop() for _ in range(len(queue))] == ready


def bring_back(parked: list[RequestState], ready: list[RequestState]) -> None:
    first = min(parked, key=lambda request: request.rank)
    if not ready or first.rank < ready[0].rank:
        parked.remove(first)
        ready.insert(0, first)


def check(
    queue: WaitingQueue, ready: list[RequestState], parked: dict[bytes, list[RequestState]]
) -> None:
    waiting = [*ready, *(request for requests in parked.values() for request in requests)]
    assert queue.peek() is (ready[0] if ready else None)
    assert sorted(map(id, queue)) == sorted(map(id, waiting))
    assert len(queue) == len(waiting)
    assert queue.num_tokens == sum(request.num_tokens for request in waiting)
    assert queue.events == {event for event, requests in parked.items() if requests}


def test_an_id_used_again_is_another_request() -> None:
    queue = WaitingQueue()
    first, second = make_state(1, 3), make_state(1, 5)
    queue.push(first)
    queue.park(b"")
    queue.remove("1")
    queue.push(second)
    queue.unpark(b"")
    assert queue.pop() is second
    assert queue.peek() is None


def test_the_first_of_all_is_brought_back_and_others_stay_parked() -> None:
    queue = WaitingQueue()
    states = [make_state(number, 1) for number in range(4)]
    for state in states:
        queue.push(state)
    for event in (b"x", b"y", b"x"):
        queue.park(event)
    queue.remove("0")
    assert queue.peek() is states[3]
    assert queue.peek([b"x", b"y", b"z"]) is states[1]
    assert queue.pop() is states[1]
    assert queue.peek([b"y"]) is states[2]


def test_removing_a_stranger_changes_nothing() -> None:
    queue = WaitingQueue()
    queue.push(make_state(1, 3))
    assert not queue.remove("b")
    assert (len(queue), queue.num_tokens) == (1, 3)
