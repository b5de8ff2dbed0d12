"""A replica that refuses one of several answers, in the frame in which another begins."""

from collections.abc import AsyncIterator

import grpc
import pytest

from cluster.link.client import LinkClient
from cluster.link.protocol import LINK_VERSION
from cluster.router.choices import ChoiceStreams
from protos.v1 import link_pb2 as link
from protos.v1.link_pb2_grpc import LinkServiceServicer, add_LinkServiceServicer_to_server
from qwen3_ray.errors import OverloadedError
from tests.cluster.link.fake_replica import TOKEN, make_submit, soon


class OneFrame(LinkServiceServicer):
    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[link.RouterFrame], _: object
    ) -> AsyncIterator[link.ReplicaFrame]:
        yield link.ReplicaFrame(hello=link.Hello(protocol_version=LINK_VERSION))
        await anext(request_iterator)
        yield link.ReplicaFrame(
            deltas=[link.StreamDelta(request_id="r-0", token_ids=[1])],
            rejects=[link.Reject(request_id="r-1", reason=link.Reject.OVERLOADED)],
        )
        async for _ in request_iterator:  # until the router hangs up
            pass


async def test_a_refused_answer_is_known_before_the_first_token_of_another() -> None:
    server = grpc.aio.server()
    add_LinkServiceServicer_to_server(OneFrame(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = LinkClient(f"127.0.0.1:{port}", TOKEN)
    try:
        await client.connect()
        streams = ChoiceStreams([client.open(make_submit(f"r-{choice}")) for choice in range(2)])
        with pytest.raises(OverloadedError):
            await soon(anext(streams))
        await streams.aclose()
    finally:
        await client.close()
        await server.stop(None)
