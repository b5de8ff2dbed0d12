"""News of replicas reach the event loop that asked for them, whichever thread brings them."""

import asyncio
import threading
from collections.abc import Mapping

from cluster.router.members import MemberBoard


class Heard:
    def __init__(self) -> None:
        self.lists: list[tuple[Mapping[str, str], int]] = []
        self.news = asyncio.Event()

    def __call__(self, members: Mapping[str, str]) -> None:
        self.lists.append((members, threading.get_ident()))
        self.news.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.lists) < count:
                self.news.clear()
                await self.news.wait()


async def test_a_list_from_another_thread_arrives_on_the_loop() -> None:
    board, heard = MemberBoard(), Heard()
    board.listen(heard)
    await asyncio.to_thread(board.publish, {"r1": "host:1"})
    await heard.wait(2)
    here = threading.get_ident()
    assert heard.lists == [({}, here), ({"r1": "host:1"}, here)]


async def test_a_late_listener_gets_the_present_list() -> None:
    board, heard = MemberBoard(), Heard()
    board.publish({"r1": "host:1"})
    board.listen(heard)
    await heard.wait(1)
    assert heard.lists[0][0] == {"r1": "host:1"}


async def test_a_listener_keeps_the_list_it_was_given() -> None:
    board, heard = MemberBoard(), Heard()
    members = {"r1": "host:1"}
    board.publish(members)
    board.listen(heard)
    members.clear()
    await heard.wait(1)
    assert heard.lists[0][0] == {"r1": "host:1"}


def test_a_listener_whose_loop_is_gone_is_no_error() -> None:
    board = MemberBoard()

    async def listen_and_leave() -> None:
        board.listen(lambda _members: None)

    asyncio.run(listen_and_leave())
    board.publish({"r1": "host:1"})
