import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwen3_ray.core.block_pool import BlockPool
from qwen3_ray.errors import EngineError

NUM_BLOCKS = 12


class BlockPoolMachine(RuleBasedStateMachine):
    """Owners take and give back blocks at random; a plain set is the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.owners: list[list[int]] = []

    @property
    def held(self) -> list[int]:
        return [block_id for owner in self.owners for block_id in owner]

    @rule(count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            with pytest.raises(EngineError, match="asked for"):
                self.pool.allocate(count)
            return
        block_ids = self.pool.allocate(count)
        assert len(block_ids) == count
        assert not set(block_ids) & set(self.held)
        self.owners.append(block_ids)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        owner = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.free(owner)

    @precondition(lambda self: self.held)
    @rule()
    def free_twice(self) -> None:
        free = next(iter(set(range(NUM_BLOCKS)) - set(self.held)), NUM_BLOCKS)
        with pytest.raises(EngineError, match="not in use"):
            self.pool.free([free])

    @invariant()
    def no_block_is_lost_or_shared(self) -> None:
        assert len(self.held) + self.pool.num_free == NUM_BLOCKS
        assert sorted(set(self.held)) == sorted(self.held)
        self.pool.check_integrity(self.held)

    @invariant()
    def a_wrong_list_of_held_blocks_is_noticed(self) -> None:
        for wrong in ([*self.held, 0], self.held[1:] if self.held else [3]):
            with pytest.raises(EngineError, match="lost or shared"):
                self.pool.check_integrity(wrong)


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_the_block_freed_last_is_handed_out_first() -> None:
    pool = BlockPool(8)
    first, second = pool.allocate(3), pool.allocate(2)
    pool.free(first)
    pool.free(second)
    assert set(pool.allocate(2)) == set(second)


@pytest.mark.parametrize("block_id", [-1, 4, 0], ids=["negative", "too high", "never handed out"])
def test_freeing_a_block_that_is_not_in_use_is_an_error(block_id: int) -> None:
    with pytest.raises(EngineError, match=f"block {block_id} "):
        BlockPool(4).free([block_id])
