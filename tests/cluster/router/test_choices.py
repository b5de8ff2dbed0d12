"""Several streams are read as one: nothing is lost, and each keeps its order."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.choices import ChoiceStreams
from protos.v1 import link_pb2 as link
from qwen3_ray.errors import UnavailableError


class Scripted:
    """A stream that gives its deltas after some turns of the loop each, then ends as told."""

    def __init__(self, turns: list[int], end: Exception | None = None) -> None:
        self._turns = list(enumerate(turns))
        self._end = end or StopAsyncIteration()
        self.closed = False

    async def __anext__(self) -> link.StreamDelta:
        if not self._turns:
            raise self._end
        number, turns = self._turns.pop(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        return link.StreamDelta(from_index=number)

    async def aclose(self) -> None:
        self.closed = True


@given(scripts=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=4))
def test_every_delta_of_every_stream_comes_once_and_in_order(scripts: list[list[int]]) -> None:
    async def read() -> list[tuple[int, int]]:
        streams = [Scripted(turns) for turns in scripts]
        choices = ChoiceStreams(streams)
        seen = [(choice, delta.from_index) async for choice, delta in choices]
        await choices.aclose()
        assert all(stream.closed for stream in streams)
        return seen

    seen = asyncio.run(read())
    for number, turns in enumerate(scripts):
        assert [index for choice, index in seen if choice == number] == list(range(len(turns)))


async def test_an_error_of_one_comes_after_what_came_before_it() -> None:
    error = UnavailableError("gone")
    choices = ChoiceStreams([Scripted([0, 0, 50]), Scripted([0], error)])
    seen: list[int] = []

    async def read() -> None:
        async for choice, _ in choices:
            seen.append(choice)

    with pytest.raises(UnavailableError, match="gone"):
        await read()
    assert 1 in seen
    await choices.aclose()


async def test_closing_ends_what_waits() -> None:
    choices = ChoiceStreams([Scripted([10_000_000]), Scripted([10_000_000])])
    await asyncio.sleep(0)
    await choices.aclose()
    await choices.aclose()
    assert all(task.done() for task in choices._tasks)
