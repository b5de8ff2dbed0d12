"""The cheapest replica wins, whatever the replicas look like."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.router.routing import ReplicaView, SentTokens, cost, ranked

VIEWS = st.lists(
    st.builds(
        ReplicaView,
        replica_id=st.text("abcdef", min_size=1, max_size=3),
        num_waiting_tokens=st.integers(0, 300),
        num_running=st.integers(0, 30),
        num_sent_tokens=st.integers(0, 300),
    ),
    max_size=8,
    unique_by=lambda view: view.replica_id,
)


@given(views=VIEWS, num_prompt_tokens=st.integers(1, 1_000))
def test_nobody_before_another_is_dearer(views: list[ReplicaView], num_prompt_tokens: int) -> None:
    by_id = {view.replica_id: view for view in views}
    order = ranked(views, num_prompt_tokens)
    assert sorted(order) == sorted(by_id)
    costs = [(cost(by_id[id_], num_prompt_tokens), id_) for id_ in order]
    assert costs == sorted(costs)


@given(views=VIEWS.filter(len), num_prompt_tokens=st.integers(1, 1_000), data=st.data())
def test_the_order_of_the_list_does_not_matter(
    views: list[ReplicaView], num_prompt_tokens: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(views))
    assert ranked(shuffled, num_prompt_tokens) == ranked(views, num_prompt_tokens)


def test_cost_counts_queue_unreported_tokens_decodes_and_the_prompt() -> None:
    view = ReplicaView(replica_id="r", num_waiting_tokens=1_000, num_running=7, num_sent_tokens=200)
    assert cost(view, 30) == 1_237


def test_an_idle_replica_wins_over_one_that_decodes() -> None:
    busy = ReplicaView(replica_id="a", num_running=2)
    idle = ReplicaView(replica_id="b")
    assert ranked([busy, idle], 10) == ["b", "a"]


def test_equal_costs_go_by_id() -> None:
    assert ranked([ReplicaView(replica_id=id_) for id_ in "cab"], 10) == ["a", "b", "c"]


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["add", "settle", "read"]),
            st.sampled_from(["r1", "r2"]),
            st.integers(0, 5),
            st.integers(1, 50),
        ),
        max_size=40,
    )
)
def test_sent_tokens_count_what_is_neither_settled_nor_old(
    events: list[tuple[str, str, int, int]],
) -> None:
    sent = SentTokens(covered_after_s=10.0)
    expected: dict[tuple[str, str], tuple[int, int]] = {}
    for now_s, (kind, replica_id, number, num_tokens) in enumerate(events):
        key = (replica_id, str(number))
        if kind == "add" and key not in expected:
            sent.add(replica_id, key[1], num_tokens, now_s=now_s)
            expected[key] = (now_s, num_tokens)
        elif kind == "settle":
            sent.settle(replica_id, key[1])
            expected.pop(key, None)
        fresh = {key: entry for key, entry in expected.items() if now_s - entry[0] < 10}
        if kind == "read":  # entries leave when they are looked at, never before
            total = sum(tokens for key, (_, tokens) in fresh.items() if key[0] == replica_id)
            assert sent.total(replica_id, now_s=now_s) == total
            stale = [key for key in expected if key not in fresh and key[0] == replica_id]
            for key in stale:
                del expected[key]
