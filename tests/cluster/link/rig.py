"""What the tests of links share: a client that hangs up, and what it reads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.link.client import LinkClient, LinkStream
from protos.v1 import link_pb2 as link
from tests.cluster.link.fake_replica import (
    TOKEN,
    FakeReplica,
)


@asynccontextmanager
async def linked(replica: FakeReplica, **options: float) -> AsyncIterator[LinkClient]:
    client = LinkClient(replica.address, TOKEN, **options)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


async def read_all(stream: LinkStream) -> list[link.StreamDelta]:
    return [delta async for delta in stream]


def joined(deltas: list[link.StreamDelta]) -> tuple[bytes, str]:
    return (
        bytes(id_ for delta in deltas for id_ in delta.token_ids),
        "".join(delta.text for delta in deltas),
    )


async def run_steps(replica: FakeReplica, count: int) -> None:
    for _ in range(count):
        replica.step()
        await asyncio.sleep(0)
