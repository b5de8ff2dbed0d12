from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwen3_ray.core.block_pool import BlockPool
from qwen3_ray.errors import EngineError

NUM_BLOCKS = 12


class BlockPoolMachine(RuleBasedStateMachine):
    """Owners take, share and give back blocks at random; plain lists are the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: list[int] = []
        self.kept: list[int] = []

    @property
    def num_blank(self) -> int:
        return NUM_BLOCKS - len(set(self.held)) - len(self.kept)

    @rule(count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> None:
        if count > NUM_BLOCKS - len(set(self.held)):
            with pytest.raises(EngineError, match="asked for"):
                self.pool.allocate(count)
            return
        num_lost = max(0, count - self.num_blank)
        lost, self.kept = self.kept[:num_lost], self.kept[num_lost:]
        block_ids = self.pool.allocate(count)
        assert len(set(block_ids)) == count
        assert not set(block_ids) & {*self.held, *self.kept}
        assert block_ids[count - num_lost :] == lost
        self.held += block_ids

    @precondition(lambda self: self.held or self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from([*self.held, *self.kept]))
        self.pool.share(block_id)
        self.held.append(block_id)
        if block_id in self.kept:
            self.kept.remove(block_id)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.booleans())
    def free(self, data: st.DataObject, keep: bool) -> None:
        block_id = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.free(block_id, keep=keep)
        if keep and block_id not in self.held:
            self.kept.append(block_id)

    @rule()
    def blank_kept(self) -> None:
        self.pool.blank_kept()
        self.kept.clear()

    @precondition(lambda self: self.held)
    @rule()
    def free_twice(self) -> None:
        free = next(iter(set(range(NUM_BLOCKS)) - set(self.held)), NUM_BLOCKS)
        with pytest.raises(EngineError, match="not in use"):
            self.pool.free(free)

    @invariant()
    def every_block_is_blank_kept_or_has_the_owners_it_was_given(self) -> None:
        assert self.pool.num_free == NUM_BLOCKS - len(set(self.held))
        owners = Counter(self.held)
        assert all(self.pool.num_owners(i) == owners[i] for i in range(NUM_BLOCKS))
        self.pool.check_integrity(self.held, self.kept)

    @invariant()
    def a_wrong_list_of_held_or_kept_blocks_is_noticed(self) -> None:
        for wrong in ([*self.held, 0], self.held[1:] if self.held else [3]):
            with pytest.raises(EngineError, match="lost or shared"):
                self.pool.check_integrity(wrong, self.kept)
        with pytest.raises(EngineError, match="not those of the prefix cache"):
            self.pool.check_integrity(self.held, self.kept[1:] if self.kept else [3])


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_the_blank_block_freed_last_is_handed_out_first() -> None:
    pool = BlockPool(8)
    first, second = pool.allocate(3), pool.allocate(2)
    for block_id in (*first, *second):
        pool.free(block_id)
    assert set(pool.allocate(2)) == set(second)


def test_kept_blocks_are_handed_out_after_blank_ones_and_the_oldest_first() -> None:
    pool = BlockPool(4)
    for block_id in pool.allocate(3):
        pool.free(block_id, keep=True)
    pool.share(0)
    pool.free(0, keep=True)
    assert pool.allocate(4) == [3, 1, 2, 0]


@pytest.mark.parametrize("block_id", [-1, 4, 0], ids=["negative", "too high", "never handed out"])
def test_freeing_a_block_that_is_not_in_use_is_an_error(block_id: int) -> None:
    with pytest.raises(EngineError, match=f"block {block_id} "):
        BlockPool(4).free(block_id)


def test_sharing_a_block_that_holds_nothing_is_an_error() -> None:
    with pytest.raises(EngineError, match="block 2 was shared"):
        BlockPool(4).share(2)
