"""Frames survive any cut of the byte stream, and a broken one is told, not guessed at."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.replica.channel import (
    MAX_FRAME_BYTES,
    FrameDecoder,
    FrontChannel,
    RankChannel,
    encode,
)
from protos.v1.link_pb2 import EngineCommand, EngineDelta, EngineEvent, EngineStats, Submit
from qwen3_ray.errors import ConfigError, EngineError

events = st.builds(
    lambda ids, steps: EngineEvent(
        deltas=[EngineDelta(request_id="r", token_ids=ids)], stats=EngineStats(num_steps=steps)
    ),
    st.lists(st.integers(0, 2**31 - 1), max_size=20),
    st.integers(0, 2**40),
)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[low:high] for low, high in itertools.pairwise(edges)]


@given(sent=st.lists(events, max_size=5), places=st.lists(st.integers(0, 10**6), max_size=8))
def test_messages_come_back_however_the_bytes_are_cut(
    sent: list[EngineEvent], places: list[int]
) -> None:
    decoder = FrameDecoder()
    received = [
        EngineEvent.FromString(payload)
        for chunk in cut(b"".join(map(encode, sent)), places)
        for payload in decoder.feed(chunk)
    ]
    decoder.finish()
    assert received == sent


@given(event=events, keep=st.integers(1, 10**6))
def test_a_torn_frame_is_an_error_and_gives_nothing(event: EngineEvent, keep: int) -> None:
    data = encode(event)
    decoder = FrameDecoder()
    assert list(decoder.feed(data[: 1 + keep % (len(data) - 1)])) == []
    with pytest.raises(EngineError, match="hung up after"):
        decoder.finish()


def test_a_length_beyond_the_bound_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(EngineError, match=f"length of {MAX_FRAME_BYTES + 1} bytes"):
        list(FrameDecoder().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_a_message_beyond_the_bound_is_not_sent() -> None:
    with pytest.raises(EngineError, match="larger than"):
        encode(EngineCommand(abort=["x" * MAX_FRAME_BYTES]))


async def connect(directory: Path) -> tuple[FrontChannel, RankChannel]:
    front = FrontChannel(directory / "s")
    await front.listen()
    return front, RankChannel(front.path)


async def read_commands(rank: RankChannel) -> list[EngineCommand] | None:
    return await asyncio.to_thread(rank.read, 10.0)


async def test_both_ends_talk(tmp_path: Path) -> None:
    front, rank = await connect(tmp_path)
    rank.send(lambda: EngineEvent(stats=EngineStats(num_steps=3)))
    assert await front.read() == EngineEvent(stats=EngineStats(num_steps=3))
    command = EngineCommand(
        submit=[Submit(request_id="r", prompt_token_ids=range(32_768))], abort=["a"], stop=True
    )
    front.send(command)
    received: list[EngineCommand] = []
    while not received:
        received += await read_commands(rank) or []
    assert received == [command]
    await front.close()
    assert not front.path.exists()
    assert await read_commands(rank) is None
    await asyncio.to_thread(rank.close)


async def test_the_front_sees_that_the_rank_is_gone(tmp_path: Path) -> None:
    front, rank = await connect(tmp_path)
    rank.send(EngineEvent)
    await asyncio.to_thread(rank.close)
    assert await front.read() == EngineEvent()
    assert await front.read() is None
    await front.close()


async def test_a_front_that_does_not_read_holds_no_step_up(tmp_path: Path) -> None:
    front, rank = await connect(tmp_path)
    large = EngineEvent(deltas=[EngineDelta(error="x" * (1 << 20))])
    num_events = 16  # far more than a socket takes
    for _ in range(num_events):
        rank.send(lambda: large)  # were it to wait, this test would never go on
    for _ in range(num_events):
        assert await front.read() == large
    await front.close()
    await asyncio.to_thread(rank.close)


async def test_garbage_is_an_engine_error(tmp_path: Path) -> None:
    front = FrontChannel(tmp_path / "s")
    await front.listen()
    _, writer = await asyncio.open_unix_connection(str(front.path))
    writer.write((3).to_bytes(4, "big") + b"\xff\xff\xff")
    with pytest.raises(EngineError, match="broken frame"):
        await front.read()
    writer.close()
    await writer.wait_closed()
    await front.close()


async def test_a_second_peer_is_turned_away(tmp_path: Path) -> None:
    front, rank = await connect(tmp_path)
    rank.send(EngineEvent)
    assert await front.read() == EngineEvent()
    reader, writer = await asyncio.open_unix_connection(str(front.path))
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await front.close()
    await asyncio.to_thread(rank.close)


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TMPDIR.*too long"):
        FrontChannel(tmp_path / ("x" * 100))


def test_nobody_listening_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not listen"):
        RankChannel(tmp_path / "s")
