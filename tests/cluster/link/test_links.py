"""A router's links follow the list of replicas, and come back by themselves."""

import pytest

from cluster.link.links import Links
from qwen3_ray.errors import UnavailableError
from tests.cluster.link.fake_replica import TOKEN, make_submit, running_replica, soon, until


async def test_listed_replicas_become_ready_and_unlisted_ones_leave() -> None:
    async with running_replica() as first, running_replica() as second:
        links = Links(TOKEN)
        assert links.ready == {}
        assert not await links.wait_any(0.01)
        links.set_members({"first": first.address, "second": second.address})
        assert await links.wait_any(10.0)
        await until(lambda: set(links.ready) == {"first", "second"})
        links.set_members({"second": second.address})
        assert set(links.ready) == {"second"}
        await links.close()
        assert links.ready == {}
        await links.close()


async def test_a_replica_that_leaves_the_list_keeps_its_link_until_its_streams_end() -> None:
    async with running_replica() as replica:
        links = Links(TOKEN)
        links.set_members({"r": replica.address})
        assert await links.wait_any(10.0)
        client = links.ready["r"]
        stream = client.open(make_submit("a", max_tokens=2))
        await until(lambda: bool(replica.engine.running))
        links.set_members({})
        assert links.ready == {}
        replica.step()
        assert (await soon(anext(stream))).text == "a"
        assert client.connected
        replica.step()
        assert (await soon(anext(stream))).text == "b"
        await soon(client.wait_closed())
        await links.close()


async def test_a_broken_link_is_dialled_again() -> None:
    async with running_replica() as replica:
        links = Links(TOKEN)
        links.set_members({"r": replica.address})
        assert await links.wait_any(10.0)
        first = links.ready["r"]
        await first.close()
        await until(lambda: bool(links.ready))
        assert links.ready["r"] is not first
        await links.close()


async def test_a_replica_that_comes_up_late_is_found() -> None:
    async with running_replica() as replica:
        address = replica.address
    links = Links(TOKEN)
    links.set_members({"r": address})
    assert not await links.wait_any(0.3)
    async with running_replica() as successor:
        links.set_members({"r": successor.address})  # a new life at another address
        assert await links.wait_any(10.0)
        await links.close()


async def test_closing_fails_open_streams() -> None:
    async with running_replica() as replica:
        links = Links(TOKEN)
        links.set_members({"r": replica.address})
        assert await links.wait_any(10.0)
        stream = links.ready["r"].open(make_submit("a"))
        await links.close()
        with pytest.raises(UnavailableError, match="closed"):
            await soon(anext(stream))
