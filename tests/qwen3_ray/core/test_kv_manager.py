import pytest

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.errors import EngineError
from qwen3_ray.sampling_params import SamplingParams


def make_state(
    token_ids: list[int] | range, *, salt: str = "", n: int = 1, scores: bool = False
) -> RequestState:
    return RequestState(
        request_id="a",
        token_ids=list(token_ids),
        prompt_len=len(token_ids),
        params=SamplingParams(n=n, prompt_logprobs=0 if scores else None),
        cache_salt=salt,
    )


def make_kv(num_blocks: int, *, enable_prefix_caching: bool = True) -> KVManager:
    return KVManager(
        num_blocks=num_blocks, block_size=4, enable_prefix_caching=enable_prefix_caching
    )


def admit(kv: KVManager, request: RequestState) -> int:
    """The number of blocks that were found for it."""
    found = kv.find(request)
    assert kv.has_room(request, found)
    kv.admit(request, found)
    return len(found)


def compute(kv: KVManager, request: RequestState) -> int:
    num_found = admit(kv, request)
    kv.advance(request, request.num_pending_tokens)
    return num_found


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)]
)
def test_a_request_gets_the_fewest_blocks_that_hold_its_tokens(
    num_tokens: int, num_blocks: int
) -> None:
    kv = make_kv(4)
    request = make_state(range(num_tokens))
    admit(kv, request)
    assert len(request.block_ids) == num_blocks
    assert kv.usage == num_blocks / 4


def test_growing_takes_what_is_missing_or_nothing() -> None:
    kv = make_kv(3)
    request = make_state(range(4))
    compute(kv, request)
    before = list(request.block_ids)
    assert kv.grow(request, 5)
    assert request.block_ids[:1] == before
    assert len(request.block_ids) == 3
    assert kv.grow(request, 5)
    assert kv.grow(request, 1)
    assert not kv.grow(request, 9)
    assert len(request.block_ids) == 3


def test_room_is_wanted_for_one_token_more() -> None:
    kv = make_kv(3)
    admit(kv, make_state(range(1)))
    assert kv.capacity == 12
    assert kv.has_room(make_state(range(7)), [])
    assert not kv.has_room(make_state(range(8)), [])


def test_a_found_block_that_nobody_uses_is_one_of_the_free_ones() -> None:
    kv = make_kv(3)
    first = make_state(range(8))
    compute(kv, first)
    second = make_state([*range(8), 0, 0, 0])
    assert kv.has_room(second, kv.find(second))  # shares 2 blocks in use, takes the free one
    kv.release(first)
    assert kv.has_room(second, kv.find(second))  # takes all 3
    longer = make_state([*range(8), 0, 0, 0, 0])
    assert not kv.has_room(longer, kv.find(longer))


def test_release_takes_back_blocks_and_computed_tokens() -> None:
    kv = make_kv(2)
    request = make_state(range(7))
    compute(kv, request)
    kv.release(request)
    assert (request.block_ids, request.num_computed_tokens, kv.usage) == ([], 0, 0.0)
    assert request.num_tokens == 7


@pytest.mark.parametrize(("num_tokens", "num_found"), [(4, 0), (5, 1), (8, 1), (9, 2), (20, 3)])
def test_full_blocks_before_the_last_token_are_found(num_tokens: int, num_found: int) -> None:
    kv = make_kv(9)
    compute(kv, make_state([*range(15), 99, 98]))
    other = make_state([*range(15), 97, 96, 95, 94, 93][:num_tokens])
    assert admit(kv, other) == num_found
    assert other.num_computed_tokens == 4 * num_found


def test_only_computed_blocks_are_found_but_they_are_before_the_request_ends() -> None:
    kv = make_kv(9)
    first, second = make_state(range(9)), make_state(range(9))
    admit(kv, first)
    assert kv.find(second) == []
    kv.advance(first, 5)
    assert kv.find(second) == first.block_ids[:1]
    kv.advance(first, 4)
    assert kv.find(second) == first.block_ids[:2]


def test_the_blocks_of_the_output_are_found_too() -> None:
    kv = make_kv(9)
    request = make_state(range(3))
    compute(kv, request)
    for token_id in range(3, 9):
        request.token_ids.append(token_id)
        kv.grow(request, 1)
        kv.advance(request, 1)
    kv.release(request)
    assert compute(kv, make_state(range(9))) == 2


def test_the_tail_of_a_content_is_lost_before_its_head() -> None:
    kv = make_kv(5)
    for start in (0, 100):
        request = make_state(range(start, start + 8))
        compute(kv, request)
        kv.release(request)
    found = []
    for count in (1, 2, 3, 4, 5):  # one block more each time, all different
        request = make_state(range(count * 1000, count * 1000 + 4 * count))
        request.block_ids = []
        kv.grow(request, 4 * count)
        found.append([len(kv.find(make_state(range(s, s + 9)))) for s in (0, 100)])
        kv.release(request)
    assert found == [[2, 2], [1, 2], [0, 2], [0, 1], [0, 0]]


def test_what_is_used_again_outlives_what_is_not() -> None:
    kv = make_kv(4)
    for start in (0, 100, 0):
        request = make_state(range(start, start + 5))
        compute(kv, request)
        kv.release(request)
    kv.grow(make_state(range(12)), 12)
    assert len(kv.find(make_state(range(5)))) == 1
    assert kv.find(make_state(range(100, 105))) == []


def test_requests_of_different_salts_find_nothing_of_each_other() -> None:
    kv = make_kv(9)
    assert compute(kv, make_state(range(9), salt="a")) == 0
    assert compute(kv, make_state(range(9), salt="b")) == 0
    assert compute(kv, make_state(range(9), salt="a")) == 2


def test_a_request_finds_nothing_that_it_still_wants_the_logprobs_of() -> None:
    kv = make_kv(9)
    compute(kv, make_state(range(17)))
    scored = make_state(range(17), scores=True)
    assert kv.find(scored) == []
    scored.num_prompt_logprobs = 11
    assert len(kv.find(scored)) == 2
    scored.num_prompt_logprobs = 16
    assert len(kv.find(scored)) == 4


def test_without_prefix_caching_only_choices_share_and_only_while_they_live() -> None:
    kv = make_kv(9, enable_prefix_caching=False)
    compute(kv, make_state(range(9)))
    assert kv.find(make_state(range(9))) == []
    first, second = (make_state(range(9), n=2) for _ in range(2))
    assert compute(kv, first) == 0
    assert compute(kv, second) == 2
    kv.release(first)
    assert len(kv.find(make_state(range(9), n=2))) == 2
    kv.release(second)
    assert kv.find(make_state(range(9), n=2)) == []


def test_a_reset_hides_what_was_computed_and_what_is_built_on_it() -> None:
    kv = make_kv(9)
    request, other = make_state(range(10)), make_state(range(10))
    admit(kv, request)
    kv.advance(request, 6)
    kv.reset_prefix_cache()
    kv.check_integrity([request])
    assert kv.advance(request, 4) == []
    assert kv.find(other) == []
    assert kv.find_claim(other, 0) is None
    kv.release(request)
    kv.check_integrity([])
    assert admit(kv, request) == 0
    kv.advance(request, 10)
    assert len(kv.find(other)) == 2


def test_what_a_failed_request_computed_is_not_found() -> None:
    kv = make_kv(9)
    request = make_state(range(10))
    compute(kv, request)
    kv.disown(request)
    kv.release(request)
    kv.check_integrity([])
    assert kv.find(make_state(range(10))) == []


def test_a_request_waits_for_the_last_content_that_it_shares_with_one_that_computes_it() -> None:
    kv = make_kv(20)
    first = make_state(range(17))
    admit(kv, first)
    for num_shared, num_blocks in ((3, 0), (4, 1), (11, 2), (16, 4)):
        other = make_state([*range(num_shared), *[99] * 9])
        kv.find(other)
        claim = first.block_hashes[num_blocks - 1] if num_blocks else None
        assert kv.find_claim(other, 0) == claim
    assert kv.advance(first, 9) == first.block_hashes[:2]
    other = make_state([*range(11), 99, 98])
    assert kv.find_claim(other, len(kv.find(other))) is None
    assert kv.release(first) == first.block_hashes[2:]
    kv.check_integrity([])


def test_nobody_waits_for_a_less_urgent_request_or_for_one_that_is_scored() -> None:
    kv = make_kv(20)
    for request, waits in (
        (make_state(range(9)), True),
        (make_state(range(100, 109), scores=True), False),
    ):
        request.rank = (1, 0)
        admit(kv, request)
        for priority in (0, 1, 2):
            other = make_state(request.token_ids)
            other.rank = (priority, 1)
            kv.find(other)
            assert (kv.find_claim(other, 0) is not None) == (waits and priority >= 1)


def test_integrity_notices_lost_owners_shared_blocks_missing_blocks_and_wrong_names() -> None:
    kv = make_kv(6)
    first, second = make_state(range(4)), make_state(range(10, 18))
    compute(kv, first)
    admit(kv, second)
    kv.check_integrity([first, second])
    with pytest.raises(EngineError, match="lost or shared"):
        kv.check_integrity([second])
    with pytest.raises(EngineError, match="0 with right"):
        kv.check_integrity([first, copy_of(second)])
    with pytest.raises(EngineError, match="that nobody computes"):
        kv.check_claimed([b"unknown"])
    first.num_computed_tokens = 3
    with pytest.raises(EngineError, match="a writes to it"):
        kv.check_integrity([first, second])
    first.num_computed_tokens = 5
    with pytest.raises(EngineError, match="5 computed tokens in 1 blocks"):
        kv.check_integrity([first, second])
    first.num_computed_tokens = 4
    first.block_hashes = [b"another"]
    with pytest.raises(EngineError, match="wrong hash"):
        kv.check_integrity([first, second])


def copy_of(request: RequestState) -> RequestState:
    """Another object with the same blocks, which has claimed nothing."""
    copy = make_state(request.token_ids)
    copy.block_ids = request.block_ids
    copy.block_hashes = request.block_hashes
    return copy
