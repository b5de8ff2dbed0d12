import pytest

from qwen3_ray.core.kv_manager import KVManager
from qwen3_ray.core.request_state import RequestState
from qwen3_ray.errors import EngineError
from qwen3_ray.sampling_params import SamplingParams


def make_state(request_id: str, num_tokens: int) -> RequestState:
    return RequestState(
        request_id=request_id,
        token_ids=list(range(num_tokens)),
        prompt_len=num_tokens,
        params=SamplingParams(),
    )


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)]
)
def test_a_request_gets_the_fewest_blocks_that_hold_its_tokens(
    num_tokens: int, num_blocks: int
) -> None:
    kv = KVManager(num_blocks=4, block_size=4)
    request = make_state("a", num_tokens)
    assert kv.grow(request, num_tokens)
    assert len(request.block_ids) == num_blocks
    assert kv.usage == num_blocks / 4


def test_growing_keeps_the_blocks_that_hold_computed_tokens() -> None:
    kv = KVManager(num_blocks=4, block_size=4)
    request = make_state("a", 9)
    kv.grow(request, 5)
    before = list(request.block_ids)
    request.num_computed_tokens = 5
    assert kv.grow(request, 4)
    assert request.block_ids[:2] == before
    assert len(request.block_ids) == 3


def test_asking_again_for_what_was_granted_takes_nothing() -> None:
    kv = KVManager(num_blocks=4, block_size=4)
    request = make_state("a", 9)
    assert kv.grow(request, 9)
    before = list(request.block_ids)
    assert kv.grow(request, 9)
    assert kv.grow(request, 3)
    assert request.block_ids == before


def test_a_request_for_too_many_blocks_changes_nothing() -> None:
    kv = KVManager(num_blocks=2, block_size=4)
    first, second = make_state("a", 4), make_state("b", 5)
    assert kv.grow(first, 4)
    assert not kv.grow(second, 5)
    assert second.block_ids == []
    assert kv.usage == 0.5
    kv.check_integrity([first, second])


def test_release_takes_back_blocks_and_computed_tokens() -> None:
    kv = KVManager(num_blocks=2, block_size=4)
    request = make_state("a", 8)
    kv.grow(request, 8)
    request.num_computed_tokens = 8
    kv.release(request)
    assert (request.block_ids, request.num_computed_tokens, kv.usage) == ([], 0, 0.0)
    assert request.num_tokens == 8


def test_room_and_capacity_are_counted_in_tokens() -> None:
    kv = KVManager(num_blocks=3, block_size=4)
    kv.grow(make_state("a", 1), 1)
    assert kv.capacity == 12
    assert kv.has_room(8)
    assert not kv.has_room(9)


def test_integrity_notices_a_lost_owner_a_shared_block_and_missing_blocks() -> None:
    kv = KVManager(num_blocks=4, block_size=4)
    first, second = make_state("a", 4), make_state("b", 4)
    kv.grow(first, 4)
    kv.grow(second, 4)
    kv.check_integrity([first, second])
    with pytest.raises(EngineError, match="lost or shared"):
        kv.check_integrity([first])
    second.block_ids = first.block_ids
    with pytest.raises(EngineError, match="lost or shared"):
        kv.check_integrity([first, second])
    first.num_computed_tokens = 5
    with pytest.raises(EngineError, match="5 computed tokens in 1 blocks"):
        kv.check_integrity([first, second])
