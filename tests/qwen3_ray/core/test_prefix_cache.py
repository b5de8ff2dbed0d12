import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.prefix_cache import PrefixCache, block_hash, root_hash
from qwen3_ray.errors import EngineError

TOKEN_IDS = st.lists(st.integers(0, 3), max_size=9)


def hashes(salt: str, token_ids: list[int], size: int = 2) -> list[bytes]:
    chain = [root_hash(salt)]
    for start in range(0, len(token_ids) - size + 1, size):
        chain.append(block_hash(chain[-1], token_ids[start : start + size]))
    return chain[1:]


@settings(max_examples=200, deadline=None)
@given(first=TOKEN_IDS, second=TOKEN_IDS, salts=st.tuples(*[st.sampled_from(["", "a"])] * 2))
def test_blocks_have_one_name_exactly_if_salt_and_all_tokens_up_to_them_are_equal(
    first: list[int], second: list[int], salts: tuple[str, str]
) -> None:
    for index, (ours, theirs) in enumerate(
        zip(hashes(salts[0], first), hashes(salts[1], second), strict=False)
    ):
        stop = 2 * (index + 1)
        is_equal = salts[0] == salts[1] and first[:stop] == second[:stop]
        assert (ours == theirs) == is_equal


def test_a_name_is_the_sha256_of_its_parent_and_its_ids_as_little_endian_words() -> None:
    parent = hashlib.sha256(b"salt").digest()
    content = parent + (1).to_bytes(4, "little") + (2**32 - 1).to_bytes(4, "little")
    assert root_hash("salt") == parent
    assert block_hash(parent, [1, 2**32 - 1]) == hashlib.sha256(content).digest()


def test_half_a_pair_of_surrogates_is_a_salt_too() -> None:
    assert len(root_hash("\ud800")) == 32


def test_a_search_ends_at_the_first_content_that_is_missing() -> None:
    cache = PrefixCache()
    for content, block_id in ((b"a", 4), (b"b", 2), (b"d", 7)):
        cache.insert(content, block_id)
    assert cache.find([b"a", b"b", b"c", b"d"]) == [4, 2]
    cache.forget(4)
    assert cache.find([b"a", b"b"]) == []
    assert set(cache) == {2, 7}
    cache.clear()
    assert cache.find([b"b"]) == []
    assert 2 not in cache


def test_of_two_blocks_with_one_content_the_first_is_found_and_the_second_stays_unnamed() -> None:
    cache = PrefixCache()
    cache.insert(b"a", 4)
    cache.insert(b"a", 5)
    assert cache.find([b"a"]) == [4]
    cache.forget(5)
    assert cache.find([b"a"]) == [4]
    cache.forget(4)
    assert cache.find([b"a"]) == []


def test_a_block_under_a_wrong_name_is_noticed() -> None:
    cache = PrefixCache()
    cache.insert(b"a", 4)
    cache.check_holds(4, b"a")
    cache.check_holds(5, b"a")
    with pytest.raises(EngineError, match="block 4 is cached under a wrong hash"):
        cache.check_holds(4, b"b")
